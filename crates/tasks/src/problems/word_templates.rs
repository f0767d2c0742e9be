//! The stories of the word problems.
//!
//! `{A}`, `{B}`, `{C}` are people, `{o}` and `{p}` objects, `{a}`…`{e}` numbers drawn from `ranges`. Each of
//! `steps` is `label: name = x op y` with earlier names, numbers or literals as operands; the last one is the
//! answer. A draw counts only if every result is a whole number from 0 to 999 (from 1 for the answer).

/// One story.
pub(super) struct Template {
    /// Part of the content that decides the split: never reuse one.
    pub id: &'static str,
    /// The story; its last sentence is the question.
    pub text: &'static str,
    /// `a 5-50, b 3-40`.
    pub ranges: &'static str,
    /// `in all: x = a + b; each box: y = x / c`.
    pub steps: &'static str,
}

const fn t(id: &'static str, text: &'static str, ranges: &'static str, steps: &'static str) -> Template {
    Template { id, text, ranges, steps }
}

pub(super) const NAMES: [&str; 40] = [
    "Mia", "Tom", "Anna", "Ben", "Lily", "Sam", "Emma", "Max", "Rosa", "Leo", "Nina", "Paul", "Sara", "Jack",
    "Eva", "Omar", "Lucy", "Adam", "Zoe", "Ivan", "Kate", "Luke", "Maya", "Noah", "Ruth", "Carl", "Jane",
    "Hugo", "Amy", "Dan", "Lena", "Finn", "Tara", "Joe", "Mona", "Alex", "Ida", "Ray", "Clara", "Nick",
];

pub(super) const OBJECTS: [&str; 40] = [
    "apples", "pears", "books", "pens", "coins", "stamps", "cards", "marbles", "shells", "stones", "beads",
    "buttons", "cookies", "eggs", "flowers", "balls", "toys", "kites", "cups", "plates", "keys", "stickers",
    "pencils", "ribbons", "lemons", "plums", "nuts", "candles", "maps", "boats", "hats", "drums", "bells",
    "leaves", "seeds", "photos", "badges", "ropes", "blocks", "spoons",
];

/// Sentences that do not matter. `{z}` is a number that nothing uses, `{q}` an object of no other sentence.
pub(super) const DISTRACTORS: [&str; 10] = [
    "{A} also has {z} {q} at home.",
    "There are {z} {q} on the table.",
    "{A} is {z} years old.",
    "A friend of {A} has {z} {q}.",
    "The day before, {A} saw {z} {q}.",
    "It takes {z} minutes to walk home.",
    "It is a sunny day.",
    "{A} likes {q} very much.",
    "{A} is in a hurry.",
    "The weather is cold.",
];

#[rustfmt::skip]
pub(super) const TEMPLATES: [Template; 44] = [
    t("boxes", "{A} has {a} {o}. {B} gives {A} {b} more. {A} puts them all into {c} boxes, the same number in each. How many {o} are in each box?",
      "a 5-50, b 3-40, c 2-9", "in all: x = a + b; each box: y = x / c"),
    t("change", "{A} has {a} dollars. {A} buys {b} {o} for {c} dollars each. How many dollars are left?",
      "a 30-99, b 2-9, c 2-9", "cost: x = b * c; left: y = a - x"),
    t("two_kinds", "{A} buys {a} {o} for {b} dollars each and {c} {p} for {d} dollars each. How many dollars does {A} pay?",
      "a 2-9, b 2-9, c 2-9, d 2-9", "{o}: x = a * b; {p}: y = c * d; total: z = x + y"),
    t("more_than", "{A} has {a} {o}. {B} has {b} more {o} than {A}. How many {o} do they have together?",
      "a 5-60, b 3-40", "{B}: x = a + b; together: y = a + x"),
    t("fewer_than", "{A} has {a} {o}. {B} has {b} fewer {o} than {A}. How many {o} do they have together?",
      "a 20-80, b 3-40", "{B}: x = a - b; together: y = a + x"),
    t("times_as_many", "{A} has {a} {o}. {B} has {b} times as many. How many {o} do they have together?",
      "a 3-40, b 2-6", "{B}: x = a * b; together: y = x + a"),
    t("lost_found", "{A} had {a} {o}. {A} lost {b} of them and later found {c} others. How many {o} does {A} have now?",
      "a 20-99, b 3-60, c 3-40", "left: x = a - b; now: y = x + c"),
    t("bus", "There are {a} people on a bus. At the first stop {b} get off and {c} get on. At the next stop {d} get off. How many people are on the bus now?",
      "a 15-60, b 2-20, c 2-20, d 2-20", "stay: x = a - b; first stop: y = x + c; now: z = y - d"),
    t("rows", "A garden has {a} rows with {b} flowers in each row. {c} of them are red and the rest are white. How many flowers are white?",
      "a 3-9, b 4-20, c 3-60", "flowers: x = b * a; white: y = x - c"),
    t("pages", "A book has {a} pages. {A} reads {b} pages a day for {c} days. How many pages are left to read?",
      "a 60-300, b 5-30, c 2-9", "read: x = b * c; left: y = a - x"),
    t("saving", "{A} saves {a} dollars a week for {b} weeks. {B} gives {A} {c} dollars. A bike costs {d} dollars. How many more dollars does {A} need?",
      "a 3-20, b 2-9, c 5-40, d 60-250", "saved: x = a * b; has: y = x + c; needs: z = d - y"),
    t("wash_cars", "{A}, {B} and {C} wash cars. They earn {a} dollars, {b} dollars and {c} dollars and share the money equally. How many dollars does each of them get?",
      "a 5-50, b 5-50, c 5-50", "two: x = a + b; three: y = x + c; each: z = y / 3"),
    t("walk", "The school is {a} meters from the house of {A}. {A} walks there and back every day. How many meters does {A} walk in {b} days?",
      "a 10-70, b 2-7", "one day: x = a * 2; all days: y = x * b"),
    t("train", "A train goes {a} miles an hour for {b} hours and then {c} miles more. How many miles does the train go?",
      "a 20-90, b 2-6, c 5-60", "hours: x = a * b; all: y = x + c"),
    t("crates", "{A} packs {a} {o} into crates of {b}. Then {A} sells {c} of the crates. How many crates are left?",
      "a 20-200, b 3-9, c 2-12", "crates: x = a / b; left: y = x - c"),
    t("ages", "{A} is {a} years old. {B} is {b} years older than {A}. {C} is {c} years younger than {B}. How old is {C}?",
      "a 5-40, b 3-30, c 2-30", "{B}: x = a + b; {C}: y = x - c"),
    t("future_age", "{A} is {a} years old. {B} is {b} times as old as {A}. How old will {B} be in {c} years?",
      "a 4-20, b 2-5, c 3-25", "{B} now: x = a * b; then: y = x + c"),
    t("degrees", "In the morning it is {a} degrees. At noon it is {b} degrees warmer, and at night {c} degrees colder than at noon. How many degrees is it at night?",
      "a 2-30, b 3-20, c 3-30", "noon: x = a + b; night: y = x - c"),
    t("rope", "A rope is {a} meters long. {A} cuts off {b} pieces of {c} meters each and cuts the rest into {d} equal pieces. How many meters long is each of those?",
      "a 30-99, b 2-6, c 2-9, d 2-6", "cut off: x = b * c; rest: y = a - x; each: z = y / d"),
    t("bakery", "{A} bakes {a} trays of {b} cookies. {B} eats {c} cookies. The others go into bags of {d}. How many bags are there?",
      "a 2-9, b 6-20, c 2-20, d 2-9", "cookies: x = b * a; left: y = x - c; bags: z = y / d"),
    t("class", "There are {a} girls and {b} boys in a class. Each child gets {c} {o}. How many {o} are needed?",
      "a 5-20, b 5-20, c 2-6", "children: x = a + b; needed: y = x * c"),
    t("teams", "{a} girls and {b} boys come to play. {c} children go home. The rest form teams of {d}. How many teams are there?",
      "a 6-40, b 6-40, c 2-20, d 2-9", "came: x = a + b; stay: y = x - c; teams: z = y / d"),
    t("legs", "A farm has {a} cows and {b} hens. A cow has 4 legs and a hen has 2 legs. How many legs do the animals have?",
      "a 3-40, b 3-40", "cows: x = a * 4; hens: y = b * 2; all: z = x + y"),
    t("coupon", "A coat costs {a} dollars and a hat costs {b} dollars. {A} pays {c} dollars less with a coupon and gives {d} dollars. How many dollars does {A} get back?",
      "a 20-80, b 5-30, c 3-20, d 40-120", "price: x = a + b; pays: y = x - c; back: z = d - y"),
    t("wages", "{A} earns {a} dollars an hour and works {b} hours. {B} earns {c} dollars an hour and works {d} hours. How many more dollars does {A} earn than {B}?",
      "a 5-30, b 2-9, c 3-20, d 2-9", "{A}: x = a * b; {B}: y = c * d; more: z = x - y"),
    t("readers", "{A} reads {a} pages every day. {B} reads {b} pages more than {A} every day. How many pages does {B} read in {c} days?",
      "a 5-40, b 2-30, c 2-9", "{B} a day: x = a + b; all days: y = x * c"),
    t("half", "{A} has {a} {o}. {A} gives half of them to {B} and then {b} to {C}. How many {o} does {A} have left?",
      "a 20-98, b 2-30", "half: x = a / 2; left: y = x - b"),
    t("even_out", "{A} has {a} {o} and {B} has {b} {o}. How many {o} must {A} give to {B} so that both have the same?",
      "a 20-99, b 3-60", "more: x = a - b; give: y = x / 2"),
    t("shopping", "{A} buys {a} {o} for {b} dollars each and {c} {p} for {d} dollars each and pays with {e} dollars. How many dollars does {A} get back?",
      "a 2-9, b 2-9, c 2-9, d 2-9, e 50-150", "{o}: x = a * b; {p}: y = c * d; cost: z = x + y; back: w = e - z"),
    t("tank", "A tank holds {a} liters. There are {b} liters in it. A pump adds {c} liters a minute. How many minutes does it take to fill the tank?",
      "a 40-200, b 5-90, c 2-9", "missing: x = a - b; minutes: y = x / c"),
    t("broken", "A truck carries {a} boxes with {b} {o} each and {c} boxes with {d} {o} each. {e} of the {o} are broken. How many are whole?",
      "a 2-9, b 3-12, c 2-9, d 3-12, e 3-30", "first: x = b * a; second: y = d * c; all: z = x + y; whole: w = z - e"),
    t("packs", "{A} has {a} packs of {b} {o}. {A} gives {c} {o} to each of {d} friends. How many {o} does {A} have left?",
      "a 3-9, b 5-20, c 2-9, d 2-9", "{o}: x = b * a; given: y = c * d; left: z = x - y"),
    t("party", "{A} invites {a} friends, but {b} of them cannot come. {A} gives {c} {o} to each guest and keeps {d} {o}. How many {o} did {A} have?",
      "a 6-25, b 2-9, c 2-6, d 2-30", "guests: x = a - b; given: y = x * c; all: z = y + d"),
    t("film", "Before a film there are {a} minutes of news. The film lasts {b} minutes. {A} leaves {c} minutes before the end. How many minutes was {A} there?",
      "a 5-30, b 60-180, c 5-50", "show: x = b + a; there: y = x - c"),
    t("tower", "A tower has {a} floors with {b} rooms each. {c} rooms are empty and {d} people live in each of the others. How many people live there?",
      "a 3-9, b 3-12, c 2-30, d 2-5", "rooms: x = b * a; full: y = x - c; people: z = y * d"),
    t("three_days", "On Monday {A} picks {a} {o}. On Tuesday {A} picks twice as many, and on Friday {b} fewer than on Tuesday. How many {o} does {A} pick in all?",
      "a 5-40, b 2-30", "Tuesday: x = a * 2; Friday: y = x - b; two days: z = a + x; all: w = z + y"),
    t("chain", "{A} has {a} {o}. {B} has {b} times as many as {A}. {C} has {c} fewer than {B}. How many {o} do {A} and {C} have together?",
      "a 4-30, b 2-6, c 3-40", "{B}: x = a * b; {C}: y = x - c; together: z = y + a"),
    t("hall", "A hall has {a} rows of {b} seats. {c} adults and {d} children sit down. How many seats are free?",
      "a 4-9, b 6-20, c 5-40, d 5-40", "seats: x = b * a; people: y = c + d; free: z = x - y"),
    t("supply", "{A} has {a} {o} and gets {b} more. Every day {A} uses {c} of them. How many days do the {o} last?",
      "a 5-60, b 5-60, c 2-9", "in all: x = a + b; days: y = x / c"),
    t("tickets", "A ticket costs {a} dollars. A ticket for a child costs {b} dollars less. How many dollars do {c} tickets for children cost?",
      "a 8-40, b 2-15, c 2-9", "child: x = a - b; all: y = x * c"),
    t("shop_day", "A shop has {a} {o}. It sells {b} before noon and {c} after noon. Then {d} boxes of {e} {o} arrive. How many {o} does the shop have now?",
      "a 40-120, b 3-40, c 3-40, d 2-9, e 3-12", "noon: x = a - b; night: y = x - c; new: z = e * d; now: w = y + z"),
    t("red_blue", "Each of {a} bags holds {b} red and {c} blue {o}. {A} takes out {d} of them. How many {o} are still in the bags?",
      "a 2-9, b 2-20, c 2-20, d 3-40", "one bag: x = b + c; all: y = x * a; still: z = y - d"),
    t("weight", "A box weighs {a} grams when it is empty. {A} puts in {b} {o} of {c} grams each. How many grams does the full box weigh?",
      "a 20-200, b 3-9, c 5-60", "{o}: x = c * b; full: y = x + a"),
    t("average", "In three games {A} scores {a}, {b} and {c} points. How many points is that for each game on average?",
      "a 5-60, b 5-60, c 5-60", "two: x = a + b; all: y = x + c; each: z = y / 3"),
];
