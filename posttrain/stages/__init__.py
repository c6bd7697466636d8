"""Plans of several stages: presets that expand to ordinary stages, and what is measured over them."""
