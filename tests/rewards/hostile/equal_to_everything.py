class Everything:
    def __eq__(self, other):
        return True


class One(int):
    def __eq__(self, other):
        return True

    def __int__(self):
        return 2

    def __hash__(self):
        return 1


def f(kind):
    return One(1) if kind else Everything()
