"""Encoders. Each makes its layers inside of FCN.__call__ and returns its maps by name, those of its skips and `fc7`."""
