"""A divergence: two [B, T, K] log-distributions -> [B, T]."""


def hellinger(student, teacher):
    """Squared Hellinger distance, 1 - sum_v sqrt(student_v teacher_v); between 0 and 1."""
    return 1.0 - ((student + teacher) / 2).exp().sum(-1)
