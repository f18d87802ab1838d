"""Every task that makes items, with what is known of it; data, importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from circuits.tasks.family import TaskFamily

_NAMES = {"names": "people instead of ours"}

FAMILIES: Mapping[str, TaskFamily] = MappingProxyType(
    {
        "ioi": TaskFamily(
            "two people are named, one gives something to the other: who gets it",
            "circuits.tasks.ioi:ioi",
            "finds which of two names came only once, and says it",
            "the indirect object's name; the wrong one is the subject's",
            {
                "abc": "three new different names (the default)",
                "abc-s1": "a new name in the first mention of the subject: nothing is repeated",
                "abc-s2": "a new name in the second mention of the subject: nothing is repeated",
                "flip": "the second mention of the subject becomes the indirect object: the answer flips",
                "swap": "the two people change places throughout: the answer flips, the order of first mention too",
                "order": "the two people change places in the first clause alone: the answer stays",
                "random": "two new names in the same places: the answer is the new indirect object",
            },
            {
                "IO": "the indirect object",
                "S1": "the subject's first mention",
                "S2": "its second mention",
                "S1+1": "what follows S1",
                "place": "the place",
                "thing": "what is given",
                "END": "where the answer is read",
            },
            "Wang et al. 2022 (arXiv 2211.00593): task, orders and ABC baseline; sentences and words are ours",
            {
                "order": "BABA, ABBA or mixed (half and half; the default)",
                **_NAMES,
                "places": "places instead of ours",
                "things": "things instead of ours",
                "templates": "sentences with {X}, {Y} and {S} (and {place}, {thing}) instead of our 15",
            },
        ),
        "colored-objects": TaskFamily(
            "three coloured objects lie on something, after one solved example: what colour is this one",
            "circuits.tasks.colored_objects:colored_objects",
            "binds colours to objects, and picks the one that is asked for",
            "the colour, capitalised; the wrong one is the answer to the corrupted prompt",
            {
                "queried-object": "the same text, another object is asked for (the default)",
                "colors": "the same question, the colours of two objects change places",
            },
            {
                "color_1 .. color_3": "the colours of the scene asked about, also as right_color, wrong_color_1 and _2",
                "object_1 .. object_3": "its objects, the one asked for also as right_object",
                "queried": "the object in the question",
                "surface": "what they lie on",
                "END": "where the answer is read",
            },
            "Merullo et al. 2024 (arXiv 2310.08744): wording, surfaces, 17 objects and 8 colours",
            {
                "shots": "solved examples before; 1 by default, and with the published words at most 1",
                "wrong": "counterfactual (the default) or present: both other colours of the scene",
                "objects": "objects instead of the published ones",
                "colors": "colours instead of the published ones",
                "surfaces": "surfaces instead of the published ones",
            },
        ),
        "greater-than": TaskFamily(
            "something lasted from a year to another of the same century: which end is later",
            "circuits.tasks.greater_than:greater_than",
            "compares two-digit numbers",
            "every two-digit year above the first; all others are wrong",
            {
                "01": "the first year ends in 01 (the default)",
                "later": "the first year is another, later one",
            },
            {
                "noun": "what lasted",
                "XX1": "the century",
                "YY": "the year within it",
                "XX2": "the century again",
                "END": "where the answer is read",
            },
            "Hanna et al. 2023 (arXiv 2305.00586): the task, YY=01 and the answer sets; nouns are ours",
            {
                "wording": "how the sentence ends: to (the default) or to the year",
                "centuries": "(smallest, largest) first two digits; (11, 17)",
                "years": "(smallest, largest) last two digits; (2, 98)",
                "nouns": "nouns instead of ours",
            },
        ),
        "docstring": TaskFamily(
            "a Python function and its docstring up to the third parameter: which name is next",
            "circuits.tasks.docstring:docstring",
            "copies the name that follows the last one described in the signature",
            "the third parameter; wrong are the other names of the signature",
            {
                "both": "new names in the signature and, others, in the description (the default)",
                "definition": "new names for A, B and C in the signature",
                "documentation": "new names for A and B in the description",
                "swap": "C and the parameter after it change places: so does the answer",
            },
            {
                "A_def, B_def, C_def": "the parameters in the signature",
                "A_doc, B_doc": "those described",
                "after_1 ..": "parameters after C",
                "function": "the function's name",
                "END": "where the answer is read",
            },
            "Heimersheim and Janiak 2023: the task and its corruptions; words, layout and the corruption swap are ours",
            {
                "before": "parameters in the signature before A; 0",
                "after": "parameters after C, at least 1; 3",
                "words": "words instead of ours",
            },
        ),
        "pronoun": TaskFamily(
            "somebody is named and described: he or she",
            "circuits.tasks.pronoun:pronoun",
            "takes the pronoun from the name",
            "' he' or ' she', against the other",
            {
                "other-gender": "a name of the other gender: the answer flips (the default)",
                "same-gender": "another name of the same gender: the answer stays, a control",
            },
            {"name": "the person", "role": "what they are", "END": "where the answer is read"},
            "after Mathwin et al. 2023; sentences, names and roles are ours; half the items are of each gender",
            {
                "women": "women's names instead of ours",
                "men": "men's names instead of ours",
                "roles": "roles instead of ours",
            },
        ),
        "agreement": TaskFamily(
            "a subject and other nouns between it and its verb: singular or plural",
            "circuits.tasks.agreement:agreement",
            "takes the verb's number from the subject, past nouns of another number",
            "a verb in the subject's number, against the same verb in the other",
            {
                "number": "the subject changes its number: the answer flips (the default)",
                "attractor": "the nouns between change their number: the answer stays",
            },
            {
                "subject": "the subject",
                "attractor_1 ..": "the nouns between",
                "END": "where the answer is read",
            },
            "after Linzen et al. 2016 (arXiv 1611.01368); sentences and words are ours",
            {
                "attractors": "nouns between subject and verb; 1",
                "attractor": "their number: same, opposite or mixed (half each; the default)",
                "answers": "one verb (the default), or all of four verbs",
            },
        ),
        "induction-random": TaskFamily(
            "different random token ids and the same again up to some place: which is next",
            "circuits.tasks.induction:induction_random",
            "finds the last occurrence of the current token and copies what followed",
            "the id that followed; the wrong one is the one in its place in the corrupted prompt",
            {
                "answer": "another id in the answer's place in the first copy: so is the answer (the default)",
                "unrepeated": "other ids in the first copy: nothing to copy",
            },
            {
                "source": "the answer in the first copy: where an induction head looks",
                "previous_copy": "the current token in the first copy",
                "first_copy": "all of the first copy",
                "second_copy": "all of the second, as far as it goes",
                "END": "where the answer is read",
            },
            "Olsson et al. 2022 (arXiv 2209.11895): repeated random tokens; both corruptions are ours",
            {
                "vocabulary": "(smallest, largest) id; (1000, 10000)",
                "length": "ids in the first copy; 25",
                "first": "an id to begin with, such as BOS; none",
            },
        ),
        "induction-natural": TaskFamily(
            "two people with first and last names, then one first name again: the last name",
            "circuits.tasks.induction:induction_natural",
            "copies the name that followed this first name before",
            "the person's last name, against the other person's",
            {
                "other-name": "the other person's first name at the end: the answer flips (the default)",
                "new-name": "a new first name at the end: no answer",
            },
            {
                "source": "the answer's first mention",
                "first_mention": "the first name, first time",
                "second_mention": "the first name again",
                "other_mention": "the other person's first name",
                "other_source": "the other person's last name",
                "END": "where the answer is read",
            },
            "ours",
            {**_NAMES, "family_names": "last names instead of ours"},
        ),
        "arithmetic": TaskFamily(
            "two numbers and an operation: the result",
            "circuits.tasks.arithmetic:arithmetic",
            "computes",
            "the result, against that of the corrupted prompt",
            {
                "operand": "one operand becomes another number (the default)",
                "all": "both operands become other numbers",
            },
            {
                "A, B": "the operands",
                "op_1": "the operation",
                "equals": "the sign =",
                "END": "where the answer is read",
            },
            "ours; no result is an operand or negative",
            {
                "operation": "+ (the default), -, * or mixed",
                "operands": "(smallest, largest); (1, 99)",
                "form": "spaced (12 + 5 =), tight (12+5=) or question",
                "shots": "solved examples before; 0",
            },
        ),
        "mental-math": TaskFamily(
            "A + B + C: the sum",
            "circuits.tasks.arithmetic:mental_math",
            "gathers three operands and adds them",
            "the sum, against that of the corrupted prompt",
            {
                "operand": "one operand becomes another number (the default)",
                "all": "all three do",
            },
            {
                "A, B, C": "the operands",
                "op_1, op_2": "the plus signs",
                "equals": "the sign =",
                "END": "where the answer is read",
            },
            "Mamidanna et al. 2025 (arXiv 2509.09650): A+B+C; its exact wording and range are not known to us, these "
            "are ours",
            {
                "operands": "(smallest, largest); (1, 9)",
                "form": "spaced (1 + 2 + 3 =), tight (1+2+3=) or question",
                "shots": "solved examples before; 0",
            },
        ),
        "country-capital": TaskFamily(
            "a country: its capital",
            "circuits.tasks.facts:country_capital",
            "recalls a fact about the subject",
            "the capital, against that of the country in the corrupted prompt",
            {"subject": "another country (always)"},
            {"subject": "the country", "END": "where the answer is read"},
            "ours",
            {"shots": "answered examples before; 0", "pairs": "{country: capital} instead of ours"},
        ),
        "facts": TaskFamily(
            "a subject and a relation (capital, language, continent, young, opposite, past): the object",
            "circuits.tasks.facts:facts",
            "recalls a fact about the subject",
            "the object, against that of the subject in the corrupted prompt",
            {"subject": "another subject with another object (the default)"},
            {"subject": "the subject", "END": "where the answer is read"},
            "ours",
            {
                "relation": "one of those, or mixed (the default)",
                "shots": "answered examples of the same relation before; 0",
                "pairs": "{subject: object} instead of ours, for one relation",
            },
        ),
        "multiple-choice": TaskFamily(
            "a fact, a question about it and lettered choices: the letter",
            "circuits.tasks.multiple_choice:multiple_choice",
            "finds the choice that repeats the fact and copies its letter",
            "the letter, against the letters of the other choices",
            {
                "fact": "the fact is that of another choice: so is the answer (the default)",
                "order": "two choices change places: so does the answer",
                "letters": "other letters: so is the answer",
            },
            {
                "color": "the fact",
                "asked": "the thing in the question",
                "letter_1 ..": "the letters, the right one also as right_letter",
                "choice_1 ..": "the choices, the right one also as right_choice",
                "END": "where the answer is read",
            },
            "after the copying questions of Wiegreffe et al. 2024 (arXiv 2407.15018); wording and words are ours",
            {
                "choices": "how many; 4",
                "letters": "ABCD (the default) or random",
                "things": "things instead of ours",
                "colors": "colours instead of ours",
            },
        ),
        "acronyms": TaskFamily(
            "three capitalised words and the first two letters of their acronym: the third letter",
            "circuits.tasks.acronyms:acronyms",
            "copies the first letter of the third word",
            "the letter, against that of the corrupted prompt",
            {
                "third": "another third word (the default)",
                "all": "three other words, and their letters",
            },
            {
                "W1, W2, W3": "the words",
                "L1, L2": "the letters given",
                "END": "where the answer is read",
            },
            "Garcia-Carrasco et al. 2024 (arXiv 2405.04156): the task; words are ours",
            {
                "form": "joined, (CE -> O (the default), or spaced, ( C E -> O",
                "words": "words instead of ours",
            },
        ),
    }
)
