"""What people type: `vnpu` and its commands, `vnpu-watch`."""
