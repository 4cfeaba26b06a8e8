"""A model that is one function."""

from minires.nn import Module


class Own(Module):
    """A model that is one function of its layers and x."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)
