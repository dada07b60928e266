"""The contexts that a teacher may see, one file each: ``(group, index, rewards, *, options) -> messages or None``.

Rewards come first because a successful sibling is known only by its reward. None means that this rollout has no
teacher in this context: its tokens are off in ``teacher_mask``.
"""
