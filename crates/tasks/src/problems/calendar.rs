//! Days of the week and dates, forward and back. No year has a 29 February here, and the prompts say so.

use crate::problem::{Key, draw};
use crate::steps::{Op, stated, worked};
use crate::{Level, Problem, Split, Style, Task};

pub(super) struct Calendar;

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [(&str, i64); 12] = [
    ("January", 31),
    ("February", 28),
    ("March", 31),
    ("April", 30),
    ("May", 31),
    ("June", 30),
    ("July", 31),
    ("August", 31),
    ("September", 30),
    ("October", 31),
    ("November", 30),
    ("December", 31),
];

/// The date `days` after `(day, month)`; months count from 0 and wrap.
fn later(mut day: i64, mut month: usize, days: i64) -> (i64, usize) {
    day += days;
    while day > MONTHS[month].1 {
        day -= MONTHS[month].1;
        month = (month + 1) % 12;
    }
    (day, month)
}

fn weekday(start: usize, days: i64) -> usize {
    (start as i64 + days).rem_euclid(7) as usize
}

/// Counts day by day from `start`, as many as the rest of `days` by 7.
fn count_days(start: usize, days: i64, back: bool) -> String {
    let rest = days % 7;
    let walk: Vec<&str> = (0..=rest).map(|i| DAYS[weekday(start, if back { -i } else { i })]).collect();
    format!(
        "{days} = 7 * {} + {rest} . {} {rest} : {} .",
        days / 7,
        if back { "back" } else { "on" },
        walk.join(" ")
    )
}

/// What [`Calendar`] writes into `meta`.
enum Kind {
    Weekday { start: usize, days: i64, back: bool },
    Date { day: i64, month: usize, days: i64 },
    Between { from: i64, to: i64, start: usize },
}

impl Kind {
    fn of(p: &Problem) -> Option<Kind> {
        let n = |key: &str| p.meta[key].as_i64();
        Some(match p.meta["kind"].as_str()? {
            "weekday" => Kind::Weekday {
                start: n("start")?.rem_euclid(7) as usize,
                days: n("days")?,
                back: p.meta["back"].as_bool()?,
            },
            "date" => {
                Kind::Date { day: n("day")?, month: n("month")?.rem_euclid(12) as usize, days: n("days")? }
            }
            "between" => {
                Kind::Between { from: n("from")?, to: n("to")?, start: n("start")?.rem_euclid(7) as usize }
            }
            _ => return None,
        })
    }
}

impl Task for Calendar {
    fn name(&self) -> &'static str {
        "calendar"
    }

    fn describe(&self) -> &'static str {
        "weekdays and dates some days before or after another"
    }

    fn keys(&self) -> &'static [Key] {
        const KEYS: [Key; 1] = [Key { name: "max_number", min: 20.0, max: 300.0 }];
        &KEYS
    }

    fn problem(&self, split: Split, seed: u64, index: u64, level: &Level) -> Problem {
        let max = i64::from(level.max_number.unwrap_or(60));
        draw(self, split, seed, index, |rng| {
            let start = rng.below(7);
            let month = rng.below(12);
            let (name, length) = MONTHS[month];
            let (prompt, answer, meta) = match rng.below(3) {
                0 => {
                    let (days, back) = (rng.range(3, max), rng.chance(0.5));
                    let word = if back { "before" } else { "after" };
                    let end = weekday(start, if back { -days } else { days });
                    (
                        format!("Which day of the week comes {days} days {word} a {}?", DAYS[start]),
                        DAYS[end].to_owned(),
                        serde_json::json!({ "kind": "weekday", "start": start, "days": days, "back": back }),
                    )
                }
                1 => {
                    let (day, days) = (rng.range(1, length), rng.range(3, max));
                    let (end, end_month) = later(day, month, days);
                    (
                        format!("Which date comes {days} days after {day} {name}? It is not a leap year."),
                        format!("{end} {}", MONTHS[end_month].0),
                        serde_json::json!({ "kind": "date", "day": day, "month": month, "days": days }),
                    )
                }
                _ => {
                    let from = rng.range(1, length - 4);
                    let to = rng.range(from + 2, length);
                    (
                        format!(
                            "If {from} {name} is a {}, which day of the week is {to} {name}?",
                            DAYS[start]
                        ),
                        DAYS[weekday(start, to - from)].to_owned(),
                        serde_json::json!({ "kind": "between", "month": month, "from": from, "to": to, "start": start }),
                    )
                }
            };
            Some(Problem {
                task: self.name().into(),
                system: None,
                prompt,
                answer,
                meta,
                verifier: None,
                solution: None,
            })
        })
    }

    fn solution(&self, p: &Problem, style: Style, _seed: u64) -> String {
        let careful = style == Style::Careful;
        let write = if careful { worked } else { stated };
        match Kind::of(p) {
            Some(Kind::Weekday { start, days, back }) if careful => count_days(start, days, back),
            Some(Kind::Weekday { days, .. }) => format!("{days} days ."),
            Some(Kind::Date { mut day, mut month, days }) => {
                let mut text = format!("{} .", write(day, Op::Add, days));
                day += days;
                while day > MONTHS[month].1 {
                    let (name, length) = MONTHS[month];
                    if careful {
                        text.push_str(&format!(" {name} has {length} . {} .", write(day, Op::Sub, length)));
                    }
                    day -= length;
                    month = (month + 1) % 12;
                }
                if careful {
                    text.push_str(&format!(" so {day} {} .", MONTHS[month].0));
                }
                text
            }
            Some(Kind::Between { from, to, start }) => {
                let difference = write(to, Op::Sub, from);
                if careful {
                    format!("{difference} . {}", count_days(start, to - from, false))
                } else {
                    format!("{difference} .")
                }
            }
            None => String::new(),
        }
    }

    fn verifier(&self) -> &'static str {
        "exact"
    }

    fn content(&self, p: &Problem) -> String {
        p.meta.to_string()
    }
}
