//! What a recipe's reader promises: nothing misspelt passes, every refusal names its place, and what was read
//! can be written and read again.

use super::*;
use crate::claims::Figure;
use crate::optim::schedule::ScheduleKind;
use crate::source::{Data, Source, TaskMix, Verifier};
use crate::stages::AnyStage;

const LAUNCH: &str = r#"name = "launch"
seed = 7

[problems]
mix = [
    { task = "arithmetic", weight = 2, level = { operands = 3, digits = 2 } },
    { task = "countdown" },
]
held_out = 300

[models.moe]
model_type = "deepseek_v3"
hidden_size = 128

[models.student]
model_type = "llama"
hidden_size = 96

[[stage]]
kind = "tokenizer"
vocab_size = 512

[[stage]]
kind = "pretrain"
model = "moe"
tokens = 4_000_000
optimizer = { kind = "muon" }
schedule = { kind = "wsd", warmup_steps = 20 }

[[stage]]
kind = "sft"
steps = 40

[[stage]]
kind = "grpo"
objective = "dapo"
optimizer = { learning_rate = 2e-4 }

[[stage]]
kind = "reject"

[[stage]]
kind = "distill"
student = "student"

[[stage]]
kind = "pretrain"
name = "student_base"
model = "student"

[[stage]]
kind = "grpo"
name = "distill_rl_only"
from = "student_base"
budget_of = ["reject", "distill"]

[[stage]]
kind = "eval"

[[claim]]
name = "a student learns more from a teacher"
stage = "distill"
baseline = "distill_rl_only"
figure = "maj@8"
equal_flops = true
given = "grpo"
"#;

fn parse(text: &str, sets: &[&str]) -> Result<Recipe, RecipeError> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Recipe::parse("r.toml", text, &sets)
}

/// The error of a recipe that must be refused.
fn refusal(text: &str, sets: &[&str]) -> String {
    parse(text, sets).expect_err("the recipe should have been refused").to_string()
}

fn launch_with(from: &str, to: &str) -> String {
    assert!(LAUNCH.contains(from), "{from}");
    LAUNCH.replacen(from, to, 1)
}

macro_rules! stage {
    ($recipe:expr, $name:expr, $kind:ident) => {
        match $recipe.stage($name).map(|s| s.stage()) {
            Some(AnyStage::$kind(stage)) => stage,
            other => panic!("expected a {} called {}, found {other:?}", stringify!($kind), $name),
        }
    };
}

/// What is shipped is read, and `earned` measures the stages of `launch` under the same names: what holds for one holds
/// for the other.
#[test]
fn shipped_recipes_are_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes");
    let load = |name: &str| {
        let text = std::fs::read_to_string(format!("{folder}/{name}.toml")).unwrap();
        parse(&text, &[]).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    for name in ["smoke", "quick", "gym", "text", "smol"] {
        load(name);
    }
    let (launch, earned) = (load("launch"), load("earned"));
    for name in ["reject_1", "round_1", "reject_2", "round_2", "sft_more", "sft_pretrain_more", "distill"] {
        assert_eq!(launch.stage(name).map(|s| s.stage()), earned.stage(name).map(|s| s.stage()), "{name}");
    }
}

#[test]
fn what_is_left_out_is_filled_in() {
    let recipe = parse(LAUNCH, &[]).unwrap();
    assert_eq!(stage!(recipe, "pretrain", Pretrain).own.tokenizer, "tokenizer");
    assert_eq!(stage!(recipe, "sft", Sft).own.from, "pretrain");
    assert_eq!(stage!(recipe, "grpo", Grpo).own.from, "sft");
    assert_eq!(stage!(recipe, "reject", Reject).from, "grpo");
    let distill = stage!(recipe, "distill", Distill);
    assert_eq!((distill.own.teacher.as_str(), distill.own.traces.as_deref()), ("grpo", Some("reject")));
    let all = ["pretrain", "sft", "grpo", "distill", "student_base", "distill_rl_only"];
    assert_eq!(stage!(recipe, "eval", Eval).of, all);
    let grpo = stage!(recipe, "grpo", Grpo);
    assert_eq!((grpo.own.clip_low, grpo.own.clip_high), (0.2, 0.28));
    assert_eq!(grpo.training.optimizer.learning_rate, 2e-4);
    let pretrain = stage!(recipe, "pretrain", Pretrain);
    assert_eq!(
        (pretrain.training.optimizer.learning_rate, pretrain.training.optimizer.adam_learning_rate),
        (0.03, 0.003)
    );
    assert_eq!(pretrain.training.schedule.kind, ScheduleKind::Wsd);
    assert_eq!(recipe.problems.mix[1].weight, 1.0);
    assert!(matches!(recipe.reference("student"), Reference::Model(_)));
    assert!(matches!(recipe.reference("sft"), Reference::Stage(s) if s.kind() == "sft"));
    assert!(matches!(recipe.reference("some/folder"), Reference::Path(_)));
}

/// The resolved recipe is what a run folder keeps and compares: it must be complete and stable.
#[test]
fn the_resolved_recipe_reads_back_as_itself() {
    let recipe = parse(LAUNCH, &[]).unwrap();
    let text = recipe.resolved_toml();
    let again = parse(&text, &[]).unwrap();
    assert_eq!(again, recipe, "{text}");
    assert_eq!(again.resolved_toml(), text);
    for stated in ["kind = \"grpo\"", "clip_high = 0.28", "learning_rate = 0.0002", "price_per_core_hour"] {
        assert!(text.contains(stated), "{stated} is not in\n{text}");
    }
    assert!(!text.contains("nan"), "{text}");
}

#[test]
fn a_misspelt_key_is_named_with_its_path_its_line_and_the_nearest_key() {
    let text = launch_with("{ learning_rate = 2e-4 }", "{ lerning_rate = 2e-4 }");
    let line = text.lines().position(|line| line.contains("lerning")).unwrap() + 1;
    assert_eq!(
        refusal(&text, &[]),
        format!(
            "r.toml, line {line}: unknown key `stage.grpo.optimizer.lerning_rate`; did you mean `learning_rate`?"
        )
    );
    assert_eq!(
        refusal(&launch_with("steps = 40", "setps = 40"), &[]),
        "r.toml, line 32: unknown key `stage.sft.setps`; did you mean `steps`?"
    );
    assert_eq!(refusal("sede = 3", &[]), "r.toml, line 1: unknown key `sede`; did you mean `seed`?");
    let far = refusal("[machine]\nzzz = 1", &[]);
    assert!(far.contains("`machine.zzz`; the keys here are `price_per_core_hour`, `memory_gib`"), "{far}");
    let mix = refusal(&launch_with("weight = 2", "wieght = 2"), &[]);
    assert!(mix.contains("`problems.mix.1.wieght`; did you mean `weight`?"), "{mix}");
}

#[test]
fn words_and_types_are_checked_with_their_place() {
    assert_eq!(
        refusal(&launch_with("\"dapo\"", "\"dappo\""), &[]),
        "r.toml, line 36: `stage.grpo.objective` cannot be \"dappo\"; did you mean `dapo`?"
    );
    assert_eq!(
        refusal(&launch_with("kind = \"reject\"", "kind = \"rejct\""), &[]),
        "r.toml, line 40: `stage.rejct.kind` cannot be \"rejct\"; did you mean `reject`?"
    );
    let wrong = refusal(&launch_with("steps = 40", "steps = \"forty\""), &[]);
    assert_eq!(
        wrong,
        "r.toml, line 32: `stage.sft.steps`: expected a whole number of at least 0, found the text \"forty\""
    );
    let wrong = refusal(&launch_with("steps = 40", "optimizer = 1.0"), &[]);
    assert!(wrong.contains("`stage.sft.optimizer`: expected a table, found the number 1.0"), "{wrong}");
    let wrong = refusal(&launch_with("steps = 40", "steps = -1"), &[]);
    assert!(wrong.contains("`stage.sft.steps`") && wrong.contains("-1"), "{wrong}");
    let wrong = refusal(&launch_with("steps = 40", "data = \"problem\""), &[]);
    assert!(wrong.contains("expected \"problems\", { jsonl = \"file\" } or { stage = \"name\" }"), "{wrong}");
    for own in ["hurried_share = 0.1", "mix = [{ task = \"word\" }]"] {
        let key = own.split(' ').next().expect("a key");
        let wrong =
            refusal(&launch_with("steps = 40", &format!("data = {{ jsonl = \"a.jsonl\" }}\n{own}")), &[]);
        assert!(wrong.contains(key) && wrong.contains("`data` names what is learnt"), "{wrong}");
    }
    let wrong = refusal(&launch_with("kind = \"sft\"", "name = \"x\""), &[]);
    assert!(wrong.contains("line 30") && wrong.contains("the key `kind` is missing"), "{wrong}");
}

#[test]
fn what_is_no_toml_is_refused_with_its_line() {
    let wrong = refusal("seed = 1\nname = launch\n", &[]);
    assert!(wrong.starts_with("r.toml, line 2: "), "{wrong}");
    assert!(!wrong.contains('\n'), "{wrong}");
    let wrong = refusal("seed = 1\nname = 2024-01-01", &[]);
    assert!(wrong.contains("line 2") && wrong.contains("dates"), "{wrong}");
    assert!(refusal("seed = 99999999999999999999", &[]).contains("too large"));
}

#[test]
fn sets_reach_stages_by_name_and_say_when_they_cannot() {
    let sets = ["seed=3", "stage.grpo.steps=10", "stage.sft.schedule.kind=constant", "stage.2.tokens=9000"];
    let recipe = parse(LAUNCH, &sets).unwrap();
    assert_eq!(recipe.seed, 3);
    assert_eq!(stage!(recipe, "grpo", Grpo).own.steps, 10);
    assert_eq!(stage!(recipe, "sft", Sft).training.schedule.kind, ScheduleKind::Constant);
    assert_eq!(stage!(recipe, "pretrain", Pretrain).own.tokens, 9000);
    let recipe = parse(LAUNCH, &["models.moe.hidden_size=64", "stage.grpo.mix=[{task=\"gcd\"}]"]).unwrap();
    assert_eq!(recipe.models["moe"]["hidden_size"].as_integer(), Some(64));
    assert_eq!(stage!(recipe, "grpo", Grpo).own.mix.as_deref(), Some(&[TaskMix::plain("gcd")][..]));

    assert_eq!(
        refusal(LAUNCH, &["stage.gpro.steps=10"]),
        "--set stage.gpro.steps=10: `stage` has no `gpro`; did you mean `grpo`?"
    );
    assert_eq!(
        refusal(LAUNCH, &["stage.grpo.stepps=10"]),
        "--set stage.grpo.stepps=10: unknown key `stage.grpo.stepps`; did you mean `steps`?"
    );
    assert_eq!(
        refusal(LAUNCH, &["seed=many"]),
        "--set seed=many: `seed`: expected a whole number of at least 0, found the text \"many\""
    );
    assert!(refusal(LAUNCH, &["seed"]).contains("expected key=value"));
    assert!(refusal(LAUNCH, &["seed.x=1"]).contains("`seed` is not a table"));
}

#[test]
fn references_lead_to_earlier_stages_or_folders() {
    let wrong = refusal(LAUNCH, &["stage.grpo.from=stf"]);
    assert!(wrong.contains("no earlier stage is called `stf`; did you mean `sft`?"), "{wrong}");
    let wrong = refusal(LAUNCH, &["stage.sft.from=grpo"]);
    assert!(wrong.contains("the stage `grpo` comes later"), "{wrong}");
    let wrong = refusal(LAUNCH, &["stage.grpo.from=tokenizer"]);
    assert!(wrong.contains("`tokenizer` is a tokenizer stage and makes no model"), "{wrong}");
    let wrong = refusal(LAUNCH, &["stage.pretrain.model=mo"]);
    assert!(wrong.contains("`[models]` has no `mo`; did you mean `moe`?"), "{wrong}");
    let wrong = refusal(&launch_with("kind = \"reject\"", "kind = \"eval\"\nname = \"x\""), &[]);
    assert!(wrong.contains("no earlier stage makes traces"), "{wrong}");
    let wrong = refusal("[[stage]]\nkind = 'grpo'", &[]);
    assert!(wrong.contains("no earlier stage makes a model; name a stage or a folder"), "{wrong}");
    parse("[[stage]]\nkind = 'grpo'\nfrom = './model'", &[]).unwrap();
}

#[test]
fn names_and_ranges_are_checked() {
    for (set, part) in [
        ("stage.sft.name=grpo", "two stages are called `grpo`"),
        ("stage.sft.name=../x", "cannot be called"),
        ("stage.sft.name=tensorboard", "cannot be called"),
        ("stage.grpo.group=1", "expected a number at least 2 and at most 1000000, found 1"),
        ("stage.grpo.temperature=0", "expected a number above 0, found 0"),
        ("stage.grpo.steps=0", "expected 1 to 1000000000000, found 0"),
        ("stage.grpo.optimizer.adam_learning_rate=0.5", "leave this out"),
        ("stage.grpo.optimizer.momentum=0.5", "AdamW has `beta1` in its place"),
        ("stage.grpo.max_new=9223372036854775807", "expected 1 to 1000000000000"),
        ("stage.pretrain.batch_tokens=9223372036854775807", "at most 4294967296"),
        ("problems.held_out=9223372036854775807", "expected 1 to 10000000"),
        ("problems.verifier={command=\"cat\",timeout_seconds=1e300}", "expected 0.001 to 86400"),
        ("problems.verifier={url=\"http://localhost:1/\",batch=0}", "expected 1 to 10000"),
        ("problems.verifier={most_words=9,workers=2}", "stand alone"),
        ("problems.verifier={command=\"cat\",retries=2}", "go with `url`"),
        ("problems.verifier={script=\"Klingon\"}", "no script named `Klingon`"),
        ("problems.reward=[{name=\"a b\",weight=1,verifier=\"exact\"}]", "a name of its own"),
        ("problems.reward=[{name=\"a\",weight=0,verifier=\"exact\"}]", "a number other than 0"),
        ("problems.reward=[{name=\"a\",weight=1,verifier=\"exakt\"}]", "did you mean `exact`?"),
        ("stage.eval.answer=boxd", "did you mean `boxed`?"),
        ("stage.eval.prompt=again", "expected {prompt} once"),
        ("stage.grpo.minibatches=1000", "1000 parts of 256 answers are too many"),
        ("stage.grpo.reward={accuracy=0,format=0}", "every weight is 0"),
        ("stage.sft.optimizer.beta1=1.0", "expected a number at least 0 and below 1, found 1"),
        ("stage.sft.seq_len=100000", "fewer than one sequence"),
        ("stage.pretrain.from=./x", "give either `model` or `from`, not both"),
        ("stage.distill.epochs=0", "say how long to train"),
        ("problems.too_long=\"leave_out\"", "none is left out: lower their `level`"),
        ("problems.env=HOME", "`env` goes with `command`"),
        ("problems.jsonl=x.jsonl", "give one of `mix`, `jsonl` and `command`"),
        ("problems.mix=[{task=\"gcd\",weight=0}]", "every weight is 0"),
        ("problems.mix=[{task=\"gdc\"}]", "did you mean `gcd`?"),
        ("stage.grpo.mix=[{task=\"gcd\",level={steps=2}}]", "means nothing to this task"),
        ("stage.grpo.mix=[{task=\"arithmetic\",level={operands=99}}]", "must lie in"),
        ("machine.memory_gib=0", "expected a number above 0"),
        ("stage.pretrain.source={path=\"x\",held_out_one_in=1}", "expected a number at least 2, found 1"),
    ] {
        let wrong = refusal(LAUNCH, &[set]);
        assert!(wrong.contains(part) && !wrong.contains('\n'), "{set}: {wrong}");
    }
    assert!(refusal("seed = 1", &[]).contains("the recipe has no stages"));
}

/// Rewards go with reinforcement, and a text that tells what is forgotten with models from outside.
#[test]
fn rewards_and_held_texts_are_where_they_mean_something() {
    let of = |verifier: &str| format!("problems.reward=[{{name=\"brief\",weight=-0.2,verifier={verifier}}}]");
    for verifier in
        ["{most_words=9}", "{script=\"Latin\"}", "{url=\"http://localhost:1/\",retries=0}", "\"format\""]
    {
        let recipe = parse(LAUNCH, &[&of(verifier)]).unwrap();
        assert_eq!(recipe.problems.reward[0].weight, -0.2);
        let again = Recipe::parse("again", &recipe.resolved_toml(), &[]).unwrap();
        assert_eq!(again.problems.reward, recipe.problems.reward);
    }
    let wrong = refusal(
        "[[problems.reward]]\nname = 'a'\nweight = 1\nverifier = 'exact'\n[[stage]]\nkind = 'eval'\nof = './m'",
        &[],
    );
    assert!(wrong.contains("rewards are for `grpo` stages"), "{wrong}");
    let held = |text: &str| {
        let recipe = parse(text, &[]).unwrap();
        let evals = recipe.stages.iter().filter_map(|s| match s.stage() {
            AnyStage::Eval(eval) => eval.held_text.clone(),
            _ => None,
        });
        evals.collect::<Vec<_>>()
    };
    assert_eq!(held(LAUNCH), ["none"]);
    assert_eq!(held("[[stage]]\nkind = 'sft'\nfrom = './m'\n[[stage]]\nkind = 'eval'"), ["built_in"]);
}

/// A claim that the run could not judge, or that says what would be ignored, is refused before the run.
#[test]
fn claims_compare_what_is_measured() {
    let recipe = parse(LAUNCH, &[]).unwrap();
    assert_eq!(recipe.claims[0].figure, Figure::MajAt(8));
    let built_on = ["distill", "grpo", "pretrain", "reject", "sft", "tokenizer"];
    assert_eq!(recipe.lineage("distill").into_iter().collect::<Vec<_>>(), built_on);
    let folder = ["claim.1.baseline=./before", "stage.eval.of=['distill', './before']"];
    assert_eq!(parse(LAUNCH, &folder).unwrap().claims[0].baseline, ["./before"]);
    for (set, part) in [
        ("claim.1.baseline=./before", "no eval stage measures ./before;"),
        ("claim.1.name=''", "say what is claimed"),
        ("claim.1.stage=distil", "no stage is called `distil`; did you mean `distill`?"),
        ("claim.1.baseline=[]", "expected one stage, found 0"),
        ("claim.1.baseline=['sft', 'grpo']", "expected one stage, found 2; several are for `figure"),
        ("claim.1.figure=pass@4", "`eval` has 8 samples, and measures no pass@4"),
        ("claim.1.figure=loss", "expected \"pass@1\", \"pass@8\""),
        ("claim.1.figure=flops", "`claim.1.equal_flops`: it means nothing for `flops`"),
        ("claim.1.given=gpro", "no stage is called `gpro`; did you mean `grpo`?"),
        ("claim.1.stage=reject", "no eval stage measures reject;"),
        ("claim.1.above=0.5", "expected a number at least 1"),
        ("claim.1.figure=held_out_loss", "`claim.1.equal_flops`: it means nothing"),
        (
            "claim.1={name='x', stage='sft', baseline='grpo', figure='held_out_loss'}",
            "`sft` is no pretrain stage",
        ),
        (
            "claim.1.stge=sft",
            "unknown key `claim.a student learns more from a teacher.stge`; did you mean `stage`?",
        ),
    ] {
        let wrong = refusal(LAUNCH, &[set]);
        assert!(wrong.contains(part) && !wrong.contains('\n'), "{set}: {wrong}");
    }
}

/// A value out of range is placed where it stands, or where its stage begins if it does not stand anywhere.
#[test]
fn a_value_out_of_range_has_a_line() {
    let wrong = refusal(&launch_with("steps = 40", "steps = 0"), &[]);
    assert!(wrong.starts_with("r.toml, line 32: `stage.sft.steps`"), "{wrong}");
}

#[test]
fn all_forms_of_sources_and_verifiers_are_read() {
    let text = r#"
[problems]
command = ["python3", "gym.py"]
tasks = "chain_sum"
verifier = { command = "./check", workers = 3 }
[models.a]
[[stage]]
kind = "tokenizer"
source = { path = "texts", extensions = ["py"] }
[[stage]]
kind = "pretrain"
model = "a"
source = { path = "texts" }
[[stage]]
kind = "sft"
data = { jsonl = "chats.jsonl" }
[[stage]]
kind = "reject"
[[stage]]
kind = "sft"
name = "again"
data = { stage = "reject" }
"#;
    let recipe = parse(text, &[]).unwrap();
    assert_eq!(parse(&recipe.resolved_toml(), &[]).unwrap(), Recipe { name: "r".into(), ..recipe.clone() });
    let Some(Verifier::Command(verifier)) = &recipe.problems.verifier else { panic!("{recipe:?}") };
    assert_eq!((verifier.workers, verifier.timeout_seconds), (3, 10.0));
    assert_eq!(stage!(recipe, "again", Sft).own.data, Data::Stage { stage: "reject".into() });
    let Source::Files(files) = &stage!(recipe, "pretrain", Pretrain).own.source else { panic!() };
    assert_eq!(files.held_out_one_in, 10);
    let wrong = refusal(&text.replace("workers", "worker"), &[]);
    assert!(wrong.contains("`problems.verifier.worker`; did you mean `workers`?"), "{wrong}");
}

/// Whatever stands in a file, it is read or refused, never a panic.
#[test]
fn damaged_recipes_do_not_panic() {
    let bytes = LAUNCH.as_bytes();
    for at in 0..bytes.len() {
        for byte in [b'"', b'[', b'0', b'\n', b'=', b'.'] {
            let mut damaged = bytes.to_vec();
            damaged[at] = byte;
            let _ = parse(&String::from_utf8(damaged).unwrap(), &[]);
        }
        let _ = parse(&LAUNCH[..at], &[]);
    }
}

/// Where worked solutions are few, a recipe that would read others is refused.
#[test]
fn few_solutions_are_not_read_elsewhere() {
    let few = launch_with("held_out = 300", "held_out = 300\nsolved = 50");
    let all = ["stage.pretrain.question_share=0.6", "stage.pretrain.drill_share=0.4"];
    let student = ["stage.student_base.question_share=0.6", "stage.student_base.drill_share=0.4"];
    assert!(refusal(&few, &[]).contains("`question_share` and `drill_share` to 1"));
    assert!(refusal(&few, &all).contains("stage.student_base"));
    let sets = [all, student].concat();
    assert_eq!(parse(&few, &sets).expect("all that it reads is unsolved").problems.solved, Some(50));
    let with = |set: &'static str| refusal(&few, &[&sets[..], &[set]].concat());
    assert!(with("stage.pretrain.hurried_share=0.1").contains("hurried"));
    assert!(with("stage.pretrain.mix=[{ task = \"countdown\" }]").contains("easier levels"));
    assert!(with("stage.sft.mix=[{ task = \"word\" }]").contains("problems.solved"));
    assert!(with("problems.solved=0").contains("expected 1 to"));
    assert!(with("stage.pretrain.drill_share=0.5").contains("at most 0.4"));
    assert!(with("stage.sft.drill_share=0.95").contains("at most 0.9"));
    let own = "[problems]\njsonl = 'p.jsonl'\n[[stage]]\nkind = 'sft'\nfrom = './m'\ndrill_share = 0.5";
    assert!(refusal(own, &[]).contains("of the built-in tasks of a `mix` alone"));
    let easier = "stage.pretrain.mix=[{ task = \"arithmetic\", level = { operands = 2 } }]";
    assert!(parse(&few, &[&sets[..], &[easier]].concat()).is_ok());
}

/// A second round of a kind draws other problems than the first, and a rival the same.
#[test]
fn rounds_are_counted_along_the_lineage() {
    let again = "[[stage]]\nkind = \"sft\"\nname = \"again\"\nfrom = \"grpo\"\ndata = { stage = \"reject\" }\n\n[[stage]]\n\
                 kind = \"grpo\"\nname = \"second\"\nfrom = \"again\"\n\n[[stage]]\nkind = \"eval\"\n";
    let recipe = parse(&launch_with("[[stage]]\nkind = \"eval\"\n", again), &[]).expect("a recipe");
    assert_eq!(["grpo", "second", "distill_rl_only"].map(|s| recipe.rounds_before(s)), [0, 1, 0]);
}
