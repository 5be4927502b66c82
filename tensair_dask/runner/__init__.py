"""What ``tensair run`` and the pipelines share: cluster, options, progress, results."""
