"""All that VBench's runner asks of torch."""


class cuda:
    @staticmethod
    def is_available():
        return False
