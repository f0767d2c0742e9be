//! The recipe that a lesson becomes, to be read by people too.

use std::path::Path;

use tasks::AnswerPlace;

use super::lesson::prompt_template;
use super::lesson_plan::{BATCH, SAMPLES, TEMPERATURE};
use super::{Budget, Lesson, LessonPlan};

/// How much of the model as it came is in what comes out: of 80 % right at 4.4 % more bits per byte of other text, 0.15 made 80 % at
/// 2.9 %, and 0.3 made 78 % at 1.9 % (LOG.md).
const SHARE_OF_START: f64 = 0.2;

/// Of all weights 1e-4 for a model of 135 M (4e-4 learnt less in the same steps), and more for smaller ones; of adapters ten times
/// that (a fifth of it learnt half as much in as many steps; both LOG.md).
fn learning_rate(b: &Budget) -> f64 {
    let whole = (1e-4 * (135e6 / b.parameters).sqrt()).clamp(1e-5, 1e-3);
    if b.lora.is_some() { (10.0 * whole).min(1e-3) } else { whole }
}

/// What a recipe is written from. Paths are absolute, so that it runs from anywhere.
#[derive(Clone, Copy)]
pub struct LessonRecipe<'a> {
    /// The run's name.
    pub name: &'a str,
    /// The model as it came.
    pub model: &'a Path,
    /// The lesson's problems, as a file.
    pub problems: &'a Path,
    /// What is taught.
    pub lesson: &'a Lesson,
    /// Where the model as it came puts its answers best.
    pub before: &'a AnswerPlace,
    /// Where the taught one shall put them.
    pub place: &'a AnswerPlace,
    /// A file on which to measure what is forgotten.
    pub held_text: Option<&'a str>,
    /// What there is to spend.
    pub budget: &'a Budget,
    /// What it is spent on.
    pub plan: &'a LessonPlan,
}

impl LessonRecipe<'_> {
    /// The whole recipe.
    pub fn text(&self) -> String {
        let after = self.measured("after", r#"of = "model""#, self.budget.max_new, "");
        [self.head(), self.measured_before(), self.lessons(), after].concat()
    }

    fn head(&self) -> String {
        let prompt = prompt_template(self.place);
        format!(
            r#"# Written by `shoestring teach`: change it and run it with `shoestring run` to go on from here.
name = {name}
seed = 1

[problems]
jsonl = {problems}
held_out = {held_out}
verifier = {verifier}
answer = {place}
{prompt}
[machine]
memory_gib = {memory:.1}

[[claim]]
name = "what was taught shows on rows that nothing was trained on"
stage = "model"
baseline = {model}
against = "the model as it came"
figure = "pass@1"
equal_flops = false
"#,
            name = quoted(self.name),
            problems = quoted_path(self.problems),
            held_out = self.plan.held_out,
            verifier = quoted(self.lesson.verifier),
            place = quoted(&self.place.to_string()),
            prompt = prompt.map_or_else(String::new, |p| format!("prompt = {}\n", quoted(&p))),
            memory = (self.budget.memory / f64::from(1u32 << 30)).max(0.1),
            model = quoted_path(self.model),
        )
    }

    fn measured(&self, name: &str, of: &str, max_new: usize, own_way: &str) -> String {
        let samples = self.plan.samples;
        let held_text = self.held_text.map_or_else(String::new, |t| format!("held_text = {}\n", quoted(t)));
        format!(
            r#"
[[stage]]
kind = "eval"
name = "{name}"
{of}
samples = {samples}
temperature = {TEMPERATURE}
max_new = {max_new}
{own_way}{held_text}"#
        )
    }

    /// Asked in the way that suits the model as it came best.
    fn measured_before(&self) -> String {
        let of = format!("of = {}", quoted_path(self.model));
        let (answer, taught) = (self.before.to_string(), self.place.to_string());
        let own_way = if answer == taught {
            String::new()
        } else {
            let prompt = prompt_template(self.before).unwrap_or_else(|| "{prompt}".to_owned());
            let (answer, prompt) = (quoted(&answer), quoted(&prompt));
            format!("# Asked in the way that suits it best.\nanswer = {answer}\nprompt = {prompt}\n")
        };
        self.measured("before", &of, self.budget.before.0, &own_way)
    }

    /// The stages that train, of which the last is called `model`.
    fn lessons(&self) -> String {
        let (plan, b, training) = (self.plan, self.budget, self.training());
        let mut from = quoted_path(self.model);
        let mut out = String::new();
        if plan.solution_steps > 0 {
            let steps = plan.solution_steps;
            out += &format!(
                r#"
[[stage]]
kind = "sft"
name = "solutions"
from = {from}
steps = {steps}
{training}"#
            );
            from = quoted("solutions");
        }
        for round in 1..=plan.rounds {
            // An adapter stays one to the end; weights go a part of the way back.
            let last = round == plan.rounds && b.lora.is_some();
            let name = quoted(&if last { "model".to_owned() } else { format!("round_{round}") });
            let (own, max_new, (problems, steps)) = (quoted(&own_answers(round)), b.max_new, plan.round);
            out += &format!(
                r#"
[[stage]]
kind = "reject"
name = {own}
from = {from}
problems = {problems}
samples = {SAMPLES}
temperature = {TEMPERATURE}
keep = 2
max_new = {max_new}

[[stage]]
kind = "sft"
name = {name}
from = {from}
data = {{ stage = {own} }}
steps = {steps}
{training}"#
            );
            from = name;
        }
        if b.lora.is_none() {
            let model = quoted_path(self.model);
            out += &format!(
                r#"
# What fine-tuning forgot comes back, what it learnt stays, nearly.
[[stage]]
kind = "average"
name = "model"
from = {from}
with = {model}
share = {SHARE_OF_START}
"#
            );
        }
        out
    }

    /// How every training stage learns.
    fn training(&self) -> String {
        let b = self.budget;
        let adapter = match b.lora {
            Some(rank) => format!("adapter = {{ rank = {rank}, alpha = {} }}\n", 2 * rank),
            None => String::new(),
        };
        format!(
            r#"batch_tokens = {BATCH}
seq_len = {}
{adapter}optimizer = {{ kind = "adamw", learning_rate = {:.1e}, weight_decay = 0.0 }}
schedule = {{ kind = "wsd", warmup = 0.05, decay = 0.5, final_ratio = 0.1 }}
sample_every = 0
"#,
            b.seq_len,
            learning_rate(b)
        )
    }
}

fn quoted(value: &str) -> String {
    toml::Value::from(value).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// The stage that samples the model's own answers in a round, counted from 1.
pub(super) fn own_answers(round: usize) -> String {
    format!("own_{round}")
}
