"""Word lists that several tasks draw from: people, things, colours; short common words that most tokenizers know."""

from __future__ import annotations

WOMEN = (
    "Alice", "Amy", "Anna", "Barbara", "Carol", "Claire", "Diana", "Donna", "Elizabeth", "Emily", "Emma", "Grace",
    "Helen", "Jane", "Jennifer", "Jessica", "Julia", "Karen", "Kate", "Laura", "Linda", "Lisa", "Lucy", "Maria",
    "Martha", "Mary", "Nancy", "Rachel", "Rebecca", "Rose", "Ruth", "Sarah", "Sophie", "Susan", "Victoria",
)  # fmt: skip
MEN = (
    "Adam", "Albert", "Andrew", "Anthony", "Ben", "Brian", "Charles", "Daniel", "David", "Edward", "Eric", "Frank",
    "George", "Henry", "Jack", "James", "John", "Joseph", "Kevin", "Louis", "Mark", "Martin", "Matthew", "Michael",
    "Paul", "Peter", "Philip", "Richard", "Robert", "Simon", "Stephen", "Thomas", "Tom", "Victor", "William",
)  # fmt: skip
NAMES = (*WOMEN, *MEN)

PLACES = (
    "airport", "bakery", "bank", "beach", "bridge", "cafe", "castle", "church", "cinema", "farm", "garden", "gym",
    "harbor", "hospital", "hotel", "library", "market", "museum", "office", "park", "restaurant", "river", "school",
    "station", "store", "theater",
)  # fmt: skip
THINGS = (
    "apple", "bag", "basket", "bell", "blanket", "book", "bottle", "box", "camera", "candle", "card", "coin", "cup",
    "drink", "flower", "gift", "hat", "key", "lamp", "letter", "map", "newspaper", "pen", "phone", "photo", "ring",
    "ticket", "watch",
)  # fmt: skip
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
