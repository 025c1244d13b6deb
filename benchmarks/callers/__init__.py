"""Those who connect to the servers that are compared, and what they say."""
