"""Read results back from trial folders, rank architectures and quantify the uncertainty."""
