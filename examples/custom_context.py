"""A context: (group, index, rewards) -> the messages the teacher reads, or None for no teacher."""


def hint_for_failures(group, index, rewards, *, template: str = "The final answer is {answer}."):
    """Tell the teacher the answer, but only where the student failed.

    Args:
        template: text of the hint; fields of the dataset row in braces
    """
    if not rewards[index] < 1.0:  # correct, or not graded: NaN
        return None
    hint = {"role": "system", "content": template.format(**group.prompt.fields)}
    return (hint, *group.prompt.messages)
