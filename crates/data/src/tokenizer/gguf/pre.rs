//! The pre-tokenizers that GGUF files name, as the expressions that the models' own `tokenizer.json` have.
//!
//! A name stands for a list of splits, one after the other (`llama-vocab.cpp` of llama.cpp has the same names).

use serde_json::{Value, json};

/// How a text is cut before its pieces are merged.
pub(super) struct Pre {
    /// One after the other.
    pub(super) splits: &'static [Split<'static>],
    /// Whether a piece that is a token as a whole is taken as that, whatever the merges say.
    pub(super) ignore_merges: bool,
}

/// One cut.
pub(super) enum Split<'a> {
    /// What the expression matches becomes a piece, and so does what lies between.
    Regex(&'a str),
    /// Digits become pieces one by one.
    Digits,
    /// GPT-2's own expression.
    Gpt2,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The names that are read, each with its cuts, the name that a file gets first where several mean the same, and whether whole
/// tokens go before merges.
const TABLE: &[(&[&str], Pre)] = &[
    (
        &["gpt-2", "olmo", "phi-2", "mpt", "jais", "trillion", "granite-docling", "modern-bert"],
        Pre { splits: &[Split::Gpt2], ignore_merges: false },
    ),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        Pre { splits: &[Split::Digits, Split::Gpt2], ignore_merges: false },
    ),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"],
        Pre { splits: &[Split::Regex(LLAMA3)], ignore_merges: true },
    ),
    (
        &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        Pre { splits: &[Split::Regex(LLAMA3)], ignore_merges: false },
    ),
    (
        &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"],
        Pre { splits: &[Split::Regex(QWEN2)], ignore_merges: false },
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        Pre {
            splits: &[
                Split::Regex(r"\p{N}{1,3}"),
                Split::Regex("[一-龥\u{3040}-ゟ゠-ヿ]+"),
                Split::Regex(DEEPSEEK3),
            ],
            ignore_merges: false,
        },
    ),
    (&["gpt-4o", "llama4", "kanana2"], Pre { splits: &[Split::Regex(GPT4O)], ignore_merges: false }),
    (&["tekken"], Pre { splits: &[Split::Regex(TEKKEN)], ignore_merges: true }),
];

impl Split<'_> {
    /// As a `tokenizer.json` says it.
    pub(super) fn json(&self) -> Value {
        match self {
            Split::Regex(regex) => {
                json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false })
            }
            Split::Digits => json!({ "type": "Digits", "individual_digits": true }),
            Split::Gpt2 => Split::Regex(GPT2).json(),
        }
    }
}

/// The cuts of a name.
pub(super) fn pre_tokenizer(name: &str) -> Result<&'static Pre, String> {
    let found = TABLE.iter().find(|(names, _)| names.contains(&name));
    found.map(|(_, pre)| pre).ok_or_else(|| {
        let known: Vec<&str> = TABLE.iter().flat_map(|(names, _)| *names).copied().collect();
        format!("its `tokenizer.ggml.pre` is {name:?}; supported are {}", known.join(", "))
    })
}

/// The name of a `tokenizer.json`'s cuts, which are all of its pre-tokenizers but for the one of bytes.
pub(super) fn name_of(splits: &[Value], ignore_merges: bool) -> Option<&'static str> {
    let same = |pre: &Pre| {
        pre.splits.len() == splits.len()
            && pre.splits.iter().zip(splits).all(|(ours, theirs)| ours.json() == *theirs)
            // Published files of one family differ in this flag, which matters where merges do not lead to a whole token.
            && (!ignore_merges || pre.ignore_merges)
    };
    TABLE.iter().find(|(_, pre)| same(pre)).map(|(names, _)| names[0])
}
