"""One room per paper; the registry names them."""
