"""The experiments of the papers, one file each; `benchmarks/papers.py` runs them."""
