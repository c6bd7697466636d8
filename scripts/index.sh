# Sourced by the scripts that call uv, with $python set: where packages are, as the user has told pip.
# uv does not read pip's configuration. What it says about where packages are is handed over, and nothing else.
pip_setting() {  # name -> value, from the environment or pip's files; empty if unset
    local variable
    variable="PIP_$(echo "$1" | tr 'a-z-' 'A-Z_')"
    if [ -n "${!variable:-}" ]; then
        echo "${!variable}"
    else
        "$python" -m pip config get "install.$1" 2>/dev/null ||
            "$python" -m pip config get "global.$1" 2>/dev/null || true
    fi
}
links=()
for place in $(pip_setting find-links); do
    case "$place" in
        *://*) links+=(--find-links "$place") ;;
        # uv fails on a folder that is missing, pip does not.
        *) if [ -d "$place" ]; then links+=(--find-links "$place"); fi ;;
    esac
done
index=$(pip_setting index-url)
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$index"; fi
certificate=$(pip_setting cert)
if [ -f "$certificate" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE="$certificate"; fi
