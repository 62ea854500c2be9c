"""One run and many: what is trained, where it is kept, how it is compared."""
