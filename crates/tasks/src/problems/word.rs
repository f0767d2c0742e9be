//! Grade-school word problems of two to four steps, told from the stories of `word_templates`.
//!
//! A careful solution names each quantity and works its step out (`in all 15 + 29 : 5 + 9 = 14 , …, so 44 .`); a
//! hurried one states the last step alone. Content is the template and its numbers: other names make no new problem.

use crate::problem::{Key, draw};
use crate::problems::word_templates::{DISTRACTORS, NAMES, OBJECTS, TEMPLATES, Template};
use crate::rng::Rng;
use crate::steps::{Op, stated, worked};
use crate::{Level, Problem, Split, Style, Task};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

pub(super) struct Word;

/// No quantity of a story goes beyond this.
const LARGEST: i64 = 999;

/// A template read once: its ranges and steps in parsed form.
struct Story {
    template: &'static Template,
    ranges: Vec<(char, i64, i64)>,
    steps: Vec<Step>,
}

struct Step {
    label: &'static str,
    result: &'static str,
    left: &'static str,
    op: Op,
    right: &'static str,
}

static STORIES: LazyLock<Vec<Story>> =
    LazyLock::new(|| TEMPLATES.iter().map(|t| Story::parse(t).expect(t.id)).collect());

impl Story {
    fn parse(template: &'static Template) -> Option<Story> {
        let range = |text: &str| {
            let (name, span) = text.trim().split_once(' ')?;
            let (low, high) = span.split_once('-')?;
            Some((name.chars().next()?, low.parse().ok()?, high.parse().ok()?))
        };
        let step = |text: &'static str| {
            let (label, formula) = text.split_once(':')?;
            let [result, "=", left, op, right] = formula.split_whitespace().collect::<Vec<_>>()[..] else {
                return None;
            };
            Some(Step { label: label.trim(), result, left, op: Op::parse(op)?, right })
        };
        Some(Story {
            template,
            ranges: template.ranges.split(',').map(range).collect::<Option<_>>()?,
            steps: template.steps.split(';').map(step).collect::<Option<_>>()?,
        })
    }

    /// Operands and result of each step; `None` where a result is no whole number from 0 to [`LARGEST`].
    fn calculate(&self, numbers: &[(char, i64)]) -> Option<Vec<(i64, i64, i64)>> {
        let mut results: Vec<(&str, i64)> = Vec::new();
        let mut out = Vec::new();
        for step in &self.steps {
            let value = |name: &str| {
                let number =
                    numbers.iter().find(|(n, _)| name.len() == 1 && name.starts_with(*n)).map(|(_, v)| *v);
                let earlier = results.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
                number.or(earlier).or_else(|| name.parse().ok())
            };
            let (left, right) = (value(step.left)?, value(step.right)?);
            let result = step.op.apply(left, right).filter(|r| (0..=LARGEST).contains(r))?;
            results.push((step.result, result));
            out.push((left, right, result));
        }
        (out.last()?.2 > 0).then_some(out)
    }
}

/// What one telling of a story fixes; kept in `meta`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Telling {
    template: String,
    numbers: Vec<(char, i64)>,
    names: [String; 3],
    objects: [String; 2],
}

impl Telling {
    fn of(p: &Problem) -> Option<Telling> {
        serde_json::from_value(p.meta.clone()).ok()
    }

    fn story(&self) -> Option<&'static Story> {
        STORIES.iter().find(|s| s.template.id == self.template)
    }

    /// `text` with people, objects and numbers filled in.
    fn fill(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (slot, name) in ["{A}", "{B}", "{C}"].iter().zip(&self.names) {
            out = out.replace(slot, name);
        }
        for (slot, object) in ["{o}", "{p}"].iter().zip(&self.objects) {
            out = out.replace(slot, object);
        }
        for (slot, number) in &self.numbers {
            out = out.replace(&format!("{{{slot}}}"), &number.to_string());
        }
        out
    }
}

/// Three different people, and three different objects of which the last is for distractors.
fn cast(rng: &mut Rng) -> ([String; 3], [String; 2], &'static str) {
    let mut three = |pool: &'static [&'static str]| {
        let a = rng.below(pool.len());
        let b = (a + 1 + rng.below(pool.len() - 1)) % pool.len();
        let c = loop {
            let c = rng.below(pool.len());
            if c != a && c != b {
                break c;
            }
        };
        [pool[a], pool[b], pool[c]]
    };
    let names = three(&NAMES);
    let [o, p, q] = three(&OBJECTS);
    (names.map(str::to_owned), [o.to_owned(), p.to_owned()], q)
}

impl Task for Word {
    fn name(&self) -> &'static str {
        "word"
    }

    fn describe(&self) -> &'static str {
        "grade-school word problems of two to four steps"
    }

    fn keys(&self) -> &'static [Key] {
        const KEYS: [Key; 2] =
            [Key { name: "steps", min: 2.0, max: 4.0 }, Key { name: "distractors", min: 0.0, max: 1.0 }];
        &KEYS
    }

    fn problem(&self, split: Split, seed: u64, index: u64, level: &Level) -> Problem {
        let max_steps = level.steps.unwrap_or(4) as usize;
        let distractors = level.distractors.unwrap_or(0.3);
        let stories: Vec<&Story> = STORIES.iter().filter(|s| s.steps.len() <= max_steps).collect();
        // The story first, then its numbers until they work out: every story is equally frequent.
        let mut story = None;
        draw(self, split, seed, index, |rng| {
            let story = *story.get_or_insert_with(|| *rng.pick(&stories));
            let numbers: Vec<(char, i64)> =
                story.ranges.iter().map(|&(name, low, high)| (name, rng.range(low, high))).collect();
            let results = story.calculate(&numbers)?;
            let (names, objects, other) = cast(rng);
            let telling = Telling { template: story.template.id.to_owned(), numbers, names, objects };
            let mut text = telling.fill(story.template.text);
            if rng.chance(distractors) {
                let unused = rng.range(2, 60).to_string();
                let sentence = telling
                    .fill(rng.pick::<&str>(&DISTRACTORS))
                    .replace("{z}", &unused)
                    .replace("{q}", other);
                let starts: Vec<usize> = text.match_indices(". ").map(|(i, _)| i + 2).collect();
                let at = *rng.pick(&starts);
                text.insert_str(at, &(sentence + " "));
            }
            Some(Problem {
                task: self.name().into(),
                system: None,
                prompt: text,
                answer: results[results.len() - 1].2.to_string(),
                meta: serde_json::to_value(&telling).expect("plain data"),
                verifier: None,
                solution: None,
            })
        })
    }

    fn solution(&self, p: &Problem, style: Style, _seed: u64) -> String {
        let Some(telling) = Telling::of(p) else { return String::new() };
        let Some(story) = telling.story() else { return String::new() };
        let Some(results) = story.calculate(&telling.numbers) else { return String::new() };
        let lines: Vec<String> = story
            .steps
            .iter()
            .zip(&results)
            .map(|(step, &(a, b, _))| match style {
                Style::Careful => format!("{} {} .", telling.fill(step.label), worked(a, step.op, b)),
                Style::Hurried => format!("{} {} .", telling.fill(step.label), stated(a, step.op, b)),
            })
            .collect();
        match style {
            Style::Careful => lines.join(" "),
            Style::Hurried => lines[lines.len() - 1].clone(),
        }
    }

    fn verifier(&self) -> &'static str {
        "numeric"
    }

    fn content(&self, p: &Problem) -> String {
        Telling::of(p).map(|t| format!("{} {:?}", t.template, t.numbers)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A story that no numbers fit, or that names an unknown slot, is found here and not in a run.
    #[test]
    fn every_story_can_be_told() {
        assert!(TEMPLATES.len() >= 30);
        let ids: BTreeSet<_> = TEMPLATES.iter().map(|t| t.id).collect();
        assert_eq!(ids.len(), TEMPLATES.len(), "a template id is used twice");
        for story in STORIES.iter() {
            let id = story.template.id;
            assert!((2..=4).contains(&story.steps.len()), "{id}");
            let mut rng = Rng::new(&[1]);
            let mut contents = BTreeSet::new();
            for _ in 0..4000 {
                let numbers: Vec<_> = story.ranges.iter().map(|&(n, l, h)| (n, rng.range(l, h))).collect();
                if story.calculate(&numbers).is_some() {
                    contents.insert(numbers);
                }
            }
            assert!(contents.len() >= 150, "{id}: only {} of 4000 draws work out", contents.len());
            for &(name, ..) in &story.ranges {
                assert!(
                    story.template.text.contains(&format!("{{{name}}}")),
                    "{id}: {name} is not in the text"
                );
                let used = story.steps.iter().any(|s| s.left.starts_with(name) || s.right.starts_with(name));
                assert!(used, "{id}: {name} is not in the steps");
            }
        }
    }

    /// Structure, not wording, makes stories different: the shapes of the calculations are many too.
    #[test]
    fn prompts_are_complete_sentences() {
        for index in 0..2000 {
            let p = Word.problem(Split::Train, 3, index, &Level::default());
            assert!(!p.prompt.contains(['{', '}']), "{}", p.prompt);
            assert!(p.prompt.ends_with('?'), "{}", p.prompt);
        }
    }
}
