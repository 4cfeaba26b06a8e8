"""Keras's files of weights, in their three forms, and the models of keras.applications."""
