"""What can go wrong, each with a message that says the fact, what was received, and the remedy."""


class ConceptEraseError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(ConceptEraseError, ValueError):
    """A concept, option or file that cannot be used as given."""

    exit_code = 2


class UnknownConceptError(InputError):
    """A concept that the base does not seem to know: there is nothing to erase.

    The message ends with `FORCE`, which tells how to erase it all the same.
    """

    FORCE = "To erase all the same, use --force (force=True in Python)."


class BaseMismatchError(InputError):
    """An adapter made for another base model."""


class ErasureLostError(ConceptEraseError, RuntimeError):
    """A pipeline would read weights that do not hold the erasure it promised."""


class AdapterFileError(InputError):
    """A safetensors file that is truncated, malformed or unsafe to use."""


class MissingModelError(ConceptEraseError):
    """A model or scorer that is neither on disk nor reachable."""

    exit_code = 2


class NumericalError(ConceptEraseError, ArithmeticError):
    """NaN or Inf in weights or results, or a solve that cannot be trusted."""

    exit_code = 2


class OutputError(ConceptEraseError, OSError):
    """The result could not be written; what was there before is intact."""

    exit_code = 74


class BusyError(ConceptEraseError):
    """Another process works on the same output folder."""

    exit_code = 75


class ResourceError(ConceptEraseError):
    """Memory ran out, also for a batch of one."""
