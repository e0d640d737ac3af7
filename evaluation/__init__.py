"""What benchmarks and training share: which photos are held out, and how pictures are compared."""
