"""Facts of one hop: subject -> object, one table per relation, with the sentences that ask for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """What is asked of a subject: sentences with ``{subject}`` whose next words are the object, and the pairs."""

    templates: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((left.strip(), right.strip()) for left, right in (entry.split(":") for entry in text.split(";")))


CAPITALS = _pairs(
    "Austria: Vienna; Belgium: Brussels; Bulgaria: Sofia; Canada: Ottawa; Chile: Santiago; China: Beijing;"
    "Cuba: Havana; Denmark: Copenhagen; Ecuador: Quito; Egypt: Cairo; England: London; Finland: Helsinki;"
    "France: Paris; Germany: Berlin; Greece: Athens; Hungary: Budapest; Iran: Tehran; Iraq: Baghdad; Ireland: Dublin;"
    "Italy: Rome; Japan: Tokyo; Jordan: Amman; Kenya: Nairobi; Lebanon: Beirut; Norway: Oslo; Peru: Lima;"
    "Poland: Warsaw; Portugal: Lisbon; Romania: Bucharest; Russia: Moscow; Scotland: Edinburgh; Spain: Madrid;"
    "Sweden: Stockholm; Syria: Damascus; Thailand: Bangkok; Turkey: Ankara; Ukraine: Kyiv; Vietnam: Hanoi;"
    "Wales: Cardiff"
)
LANGUAGES = _pairs(
    "Brazil: Portuguese; China: Chinese; Denmark: Danish; Egypt: Arabic; England: English; Finland: Finnish;"
    "France: French; Germany: German; Greece: Greek; Hungary: Hungarian; Italy: Italian; Japan: Japanese;"
    "Korea: Korean; Netherlands: Dutch; Norway: Norwegian; Poland: Polish; Russia: Russian; Spain: Spanish;"
    "Sweden: Swedish; Thailand: Thai; Turkey: Turkish; Vietnam: Vietnamese"
)
CONTINENTS = _pairs(
    "Algeria: Africa; Austria: Europe; Belgium: Europe; China: Asia; Egypt: Africa; France: Europe; Germany: Europe;"
    "Ghana: Africa; India: Asia; Iran: Asia; Italy: Europe; Japan: Asia; Kenya: Africa; Korea: Asia; Mali: Africa;"
    "Morocco: Africa; Nigeria: Africa; Poland: Europe; Spain: Europe; Sweden: Europe; Thailand: Asia; Vietnam: Asia"
)
YOUNG = _pairs(
    "bear: cub; cat: kitten; cow: calf; deer: fawn; dog: puppy; duck: duckling; frog: tadpole; goat: kid;"
    "goose: gosling; horse: foal; kangaroo: joey; pig: piglet; sheep: lamb; swan: cygnet"
)
OPPOSITES = _pairs(
    "big: small; black: white; clean: dirty; cold: hot; dark: light; dry: wet; early: late; easy: hard; empty: full;"
    "fast: slow; happy: sad; high: low; left: right; long: short; loud: quiet; new: old; open: closed; poor: rich;"
    "sharp: dull; strong: weak; thick: thin; up: down; young: old"
)
PAST = _pairs(
    "begin: began; break: broke; bring: brought; buy: bought; come: came; drink: drank; drive: drove; eat: ate;"
    "fall: fell; find: found; fly: flew; forget: forgot; give: gave; go: went; grow: grew; hold: held; keep: kept;"
    "know: knew; leave: left; lose: lost; run: ran; say: said; see: saw; sell: sold; sing: sang; sit: sat;"
    "sleep: slept; speak: spoke; stand: stood; swim: swam; take: took; teach: taught; tell: told; think: thought;"
    "throw: threw; wear: wore; win: won; write: wrote"
)

RELATIONS = {
    "capital": Relation(
        (
            "The capital of {subject} is",
            "If you travel to the capital of {subject}, you arrive in",
            "The government of {subject} sits in its capital,",
        ),
        CAPITALS,
    ),
    "language": Relation(
        ("Most people in {subject} speak", "The first language of children in {subject} is usually"), LANGUAGES
    ),
    "continent": Relation(("On a map you find {subject} in", "{subject} is a country in"), CONTINENTS),
    "young": Relation(("The young of a {subject} is called a", "A baby {subject} is known as a"), YOUNG),
    "opposite": Relation(("The opposite of {subject} is", "Something that is not {subject} at all is"), OPPOSITES),
    "past": Relation(
        ("Today they {subject}, and yesterday they", "The past tense of the verb {subject} is"), PAST
    ),
}  # fmt: skip
