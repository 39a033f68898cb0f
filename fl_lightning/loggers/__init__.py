"""Lightning loggers: made from the config (`factory`), and given images and texts (`media`)."""
