"""The vocabulary of the zoo's models: common English words, comma and full stop, and the tokenizer over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, PAD, UNK = "<bos>", "<pad>", "<unk>"
SPECIAL = (BOS, PAD, UNK)

WORDS = tuple(
    """
    . , the a an this that these those my your his her our their its some every no each
    i you he she it we they me him us them who what where when why how
    and or but so because if then while after before until than as not
    of to in on at by for from with without into onto over under near behind between through across around about
    is was are were be been has had have do did does can could will would must may should
    went came ran walked sat stood slept saw looked watched heard listened said told asked answered called
    gave took made found lost kept left put got held carried brought sent threw caught dropped opened closed
    bought sold paid ate drank cooked washed cleaned cut broke fixed built wrote read drew played sang danced
    laughed cried smiled waited worked helped met knew thought wanted liked loved hated needed felt began stopped
    turned fell flew swam jumped climbed drove rode followed showed learned tried
    man woman boy girl child baby friend mother father brother sister uncle aunt king queen teacher doctor farmer
    sailor soldier baker painter singer driver neighbour guest
    mary john anna peter alice robert emma thomas clara henry lucy george
    dog cat horse cow sheep pig goat hen duck fox wolf bear mouse rabbit bird owl frog fish bee snake
    house home room door window wall roof floor kitchen garden field farm barn school shop market church bridge
    road street town village city river lake sea beach island hill mountain forest park
    table chair bed lamp clock book letter paper pen box bag basket bottle cup plate knife spoon key coin ring
    hat coat shirt shoe glove ball toy drum bell rope ladder hammer boat ship train car cart wheel map picture
    bread butter cheese milk water tea soup rice meat egg apple pear plum lemon honey salt sugar cake
    sun moon star sky cloud rain snow wind storm fire stone sand tree leaf flower grass seed root
    day night morning evening week month year summer winter spring hour time
    hand foot head eye ear nose face heart voice name word song story game
    big small old new young long short tall high low good bad hot cold warm wet dry hard soft fast slow
    red blue green yellow white black brown gold dark bright clean empty full heavy quiet loud happy sad kind
    one two three four five six seven eight nine ten first last
    """.split()
)


def vocabulary(words: Sequence[str] = WORDS) -> dict[str, int]:
    """Token -> id: ``<bos> <pad> <unk>`` are 0, 1 and 2, the words follow in their order.

    Example:
        >>> vocabulary()["<bos>"], vocabulary()["the"]
        (0, 5)
    """
    return {token: index for index, token in enumerate((*SPECIAL, *words))}


def build_tokenizer(words: Sequence[str] = WORDS, *, context: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over ``vocabulary(words)``: splits at spaces and around punctuation, folds case, puts
    ``<bos>`` first, and reads every other word as ``<unk>``.

    Args:
        words: the ordinary words, in the order of their ids.
        context: the model's number of positions, written into the tokenizer as its ``model_max_length``.

    Example:
        >>> build_tokenizer(["cat", "the"], context=32)("The cat").input_ids
        [0, 4, 3]
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = vocabulary(words)
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
