"""The guard at home in frameworks: each module knows one of them."""
