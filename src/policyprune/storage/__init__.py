"""Where bytes come from (this disk, a package, the hub), and how they get to the disk whole."""
