"""What repairs the kept units after a search. `config/registry.py` lists the tunings."""
