"""Where a corpus comes from: local folders, the sample, hubs, object stores."""
