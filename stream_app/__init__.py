"""The application: topics, joining, training and replay runs, command line."""
