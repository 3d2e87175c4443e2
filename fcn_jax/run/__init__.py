"""Being a run: its folder, where it goes on, what it writes, its processes, being stopped."""
