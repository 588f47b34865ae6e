"""What other packages need of spanprof, one module for each."""
