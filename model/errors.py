"""Everything that can go wrong in training, each with a sentence that a person can act on."""


class BadSetting(ValueError):
    """A setting lies outside its range, or differs from the run that it should resume."""


class BadData(ValueError):
    """Data cannot be read as pictures of one size."""


class OtherShape(BadData):
    """Arrays of pictures, which are taken as they are, have another size or other channels than was asked for."""


class BadCheckpoint(ValueError):
    """A checkpoint folder is missing, incomplete, or not what its config says."""


class NotANumber(ArithmeticError):
    """A term of the loss or its gradient stopped being finite; the weights before that step are untouched."""


class Died(RuntimeError):
    """A process that works for another ended without an answer."""
