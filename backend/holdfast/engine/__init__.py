"""The engine: claims runs, carries them out, keeps leases, enforces cancels, tells subscribers."""
