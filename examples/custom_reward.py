"""Rewards: positional parameters are filled by name, keyword-only ones are options in the YAML."""

from onpolicy.rewards.extract import extract_answer


def brief_and_right(completion, answer, num_tokens, *, budget: int = 512):
    """A right answer earns 1, and up to 0.2 more for staying under the budget.

    Args:
        budget: length from which no bonus is paid, tokens
    """
    right = extract_answer(completion) == answer
    return right * (1.0 + 0.2 * max(0.0, 1.0 - num_tokens / budget))


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl's signature works as it is."""
    return {"score": float(solution_str.strip().endswith(ground_truth))}


def ends_with_a_full_stop(prompts, completions, **kwargs):
    """So does TRL's: lists in, a list out."""
    return [float(completion[-1]["content"].rstrip().endswith(".")) for completion in completions]
