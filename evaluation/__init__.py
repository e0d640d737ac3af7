"""What benchmarks and training share: photos that are held out, and a distance of pictures."""
