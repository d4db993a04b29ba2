"""A real-time recommendation system: the library below the actors, the training and the serving."""
