"""`attach` and `detach`: a read-only cache beneath a private one."""
