"""What the tests are built from: a hub on loopback, caches on disk, and small or hostile disks."""
