"""`python -m tests.rewards.wall_probe USER PROCESSES WALL ...`: put up some walls alone and attack a parent without.

Prints what is open, as JSON. The parent is a process of the same user that can be looked into, as a training process
is. Started as root for user 0 or another one; as another user it stays the one it is.
"""

from __future__ import annotations

import json
import os
import sys

from posttrain.rewards import walls


def put_up(name: str, openings: walls.Openings) -> None:
    libc = walls._libc()
    if name == "capabilities":
        walls._drop_capabilities(libc)
    elif name == "namespace":
        walls._enter_user_namespace()
    else:
        libc.prctl(38, 1, 0, 0, 0)
        (walls._restrict_files_and_signals if name == "landlock" else walls._install_filter)(libc, openings)


def main() -> None:
    user, processes, *names = sys.argv[1:]
    if int(user) != os.geteuid():
        os.setgroups([])
        os.setresgid(int(user), int(user), int(user))
        os.setresuid(int(user), int(user), int(user))
        walls._libc().prctl(4, 1, 0, 0, 0)  # a change of user closes a process to its like; an ordinary one is open
    child = os.fork()
    if child == 0:
        for name in names:
            put_up(name, walls.Openings(processes=int(processes)))
        print(json.dumps([name for name, state in walls.standing().items() if state == walls.OPEN]), flush=True)
        os._exit(0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
