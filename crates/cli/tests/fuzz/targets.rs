//! What is fuzzed: each target turns an input into words, of what it found or of what is wrong.

use std::fs;
use std::path::Path;

use data::{
    Conversation, Records, Shards, Tokenizer, TrainOptions, chat_len, encode_chat, encode_prompt, read_table,
    read_texts,
};
use model::files::{SafeFile, read_generation_config};
use model::inspect::inspect;
use model::{HeldAs, Model, ModelConfig, Use};
use tasks::verify::{Number, evaluate};
use tasks::{Problem, load_problems, verifier, verifier_names};
use tempfile::TempDir;
use train::recipe::Recipe;
use train::run::checkpoint;

use crate::archive;

/// A parser of files.
pub struct Target {
    /// Its name, and that of its folder of seeds.
    pub name: &'static str,
    /// Files of the repository that are seeds too, beside those of its folder.
    pub more: &'static [&'static str],
    /// What the input's file is called.
    file: &'static str,
    /// Texts that mean something to it.
    pub words: &'static [&'static str],
    run: fn(&Case, &[u8]) -> String,
}

/// A target with what it needs for every input.
pub struct Case {
    run: fn(&Case, &[u8]) -> String,
    dir: TempDir,
    file: &'static str,
    tokenizer: Tokenizer,
}

impl Case {
    /// Gets ready.
    pub fn new(target: &Target) -> Case {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let texts = ["What is 17 + 25?", "The answer is 42, I think."].map(str::to_owned);
        let tokenizer =
            Tokenizer::train(texts.into_iter(), &TrainOptions::reasoning(300)).expect("a tokenizer");
        Case { run: target.run, dir: dir.expect("a folder"), file: target.file, tokenizer }
    }

    /// The answer to an input.
    pub fn run(&self, input: &[u8]) -> String {
        (self.run)(self, input)
    }

    /// The input as a file.
    fn write(&self, input: &[u8]) -> std::path::PathBuf {
        let path = self.dir.path().join(self.file);
        fs::write(&path, input).expect("written");
        path
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn words<T, E: std::fmt::Display>(found: Result<T, E>, show: impl FnOnce(T) -> String) -> String {
    found.map_or_else(|error| error.to_string(), show)
}

/// All targets, in the order of their tests.
pub static TARGETS: [Target; 16] = [
    Target {
        name: "tokenizer",
        more: &[],
        file: "tokenizer.json",
        words: &[
            r#""type":"BPE""#,
            r#""type":"WordPiece""#,
            r#""type":"Unigram""#,
            r#""type":"WordLevel""#,
            r#""Regex":"(a+)+$""#,
            r#""Regex":"\\p{L}{1000}""#,
            r#""type":"Replace","pattern":{"String":"a"},"content":"aa""#,
            r#""type":"ByteLevel""#,
            r#""byte_fallback":true"#,
            r#""special":true"#,
            r#""normalized":true"#,
            r#""lstrip":true"#,
            r#""ignore_merges":true"#,
            r#""dropout":0.5"#,
            r#""continuing_subword_prefix":"\#\#""#,
        ],
        run: |case, input| {
            case.write(input);
            words(Tokenizer::load(case.dir()), |t| {
                let text = "Hello, 1234 worlds!  <|end|> a\u{301} naïve \u{0}\n日本語 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!";
                let ids = t.encode(text).and_then(|ids| t.decode(&ids, false).map(|_| ids.len()));
                let plain = t.encode_untrusted(text).map(|ids| ids.len());
                format!("{} and {}", words(ids, |n| n.to_string()), words(plain, |n| n.to_string()))
            })
        },
    },
    Target {
        name: "template",
        more: &[],
        file: "",
        words: &[
            "{% for m in messages %}",
            "{% endfor %}",
            "{% if ",
            "{% endif %}",
            "{% set x = x + x %}",
            "{% set x = [x, x] %}",
            "{% macro f(x) %}",
            "{{ f(x) }}",
            "{% endmacro %}",
            "|tojson",
            "|join",
            "|replace('a','aa')",
            "|map(attribute='x')",
            "range(99999)",
            "namespace()",
            "'a' * 99999",
            "loop.previtem",
            "messages",
            ".split('')",
            "[::-1]",
            "raise_exception('x')",
            "strftime_now('%Y')",
            "{%- ",
            " -%}",
        ],
        run: |case, input| {
            let template = String::from_utf8_lossy(input).into_owned();
            let tokenizer = case.tokenizer.clone().with_chat_template(template);
            let messages = ["Be brief.", "What is 2 + 2? <|end|>"];
            let messages = [data::Message::system(messages[0]), data::Message::user(messages[1])];
            words(encode_prompt(&tokenizer, &messages), |ids| ids.len().to_string())
        },
    },
    Target {
        name: "conversations",
        more: &[],
        file: "chats.jsonl",
        words: &[
            r#"{"messages":["#,
            r#"{"role":"user","content":""#,
            r#""role":"assistant""#,
            r#""tool_calls":[]"#,
            r#""weight":0"#,
            r#""tools":"[]""#,
            r#""content":null"#,
            r#""reasoning_content":"x""#,
            "<|end|>",
            "<|assistant|>",
            "<think>",
        ],
        run: |case, input| {
            let path = case.write(input);
            words(Records::<Conversation>::open(&path, &[]), |records| {
                let answers = records.map(|record| {
                    words(record, |(_, c)| {
                        let _ = chat_len(&case.tokenizer, &c);
                        words(encode_chat(&case.tokenizer, &c), |s| s.ids.len().to_string())
                    })
                });
                answers.collect::<Vec<_>>().join("; ")
            })
        },
    },
    Target {
        name: "parquet",
        more: &[],
        file: "rows.parquet",
        words: &["PAR1"],
        run: |case, input| {
            let path = case.write(input);
            words(Records::<serde_json::Value>::open(&path, &[]), |rows| {
                let last = rows.take(100_000).last();
                last.map_or_else(|| "no row".to_owned(), |row| words(row, |(_, v)| v.to_string()))
            })
        },
    },
    Target {
        name: "workbook",
        more: &["crates/data/tests/workbooks/one.xlsx", "crates/data/tests/workbooks/one.ods"],
        file: "",
        words: &[
            "=== ",
            "\n=== content.xml\n",
            "\n=== xl/worksheets/sheet1.xml\n",
            "\n=== xl/sharedStrings.xml\n",
            "<row r=\"1048576\">",
            "<c r=\"XFD1048576\" t=\"s\">",
            "<v>1</v>",
            "<table:table-row table:number-rows-repeated=\"1000000\">",
            "table:number-columns-repeated=\"16384\"",
            "<table:table-cell office:value-type=\"string\"/>",
            "<text:p>",
            "<text:s text:c=\"1000000\"/>",
            "<!DOCTYPE a [<!ENTITY b \"bbbb\">]>",
            "&b;",
            "Target=\"../../x\"",
        ],
        run: |case, input| {
            // An archive as it stands, or the parts of one, which is made with the right checksums.
            let archive = if input.starts_with(b"PK") { input.to_vec() } else { archive::of_parts(input) };
            let is_ods = input.windows(11).any(|part| part == b"content.xml");
            let path = case.dir().join(if is_ods { "table.ods" } else { "table.xlsx" });
            fs::write(&path, archive).expect("written");
            words(read_table(&path, None), |t| format!("{} columns, {} rows", t.columns.len(), t.rows.len()))
        },
    },
    Target {
        name: "corpus",
        more: &[],
        file: "text.jsonl.gz",
        words: &[r#"{"text":""#, "\u{1f}\u{8b}"],
        run: |case, input| {
            let path = case.write(input);
            words(read_texts(&path), |corpus| {
                let texts = corpus.texts().map(|text| words(text, |t| t.len().to_string()));
                texts.take(1000).collect::<Vec<_>>().join("; ")
            })
        },
    },
    Target {
        name: "shards",
        more: &[],
        file: "tokens.bin",
        words: &["SHOETOKS"],
        run: |case, input| {
            let mut bytes = input.to_vec();
            // Right checksums, so that what they protect is reached.
            if let Some((head, body)) = bytes.split_at_mut_checked(48) {
                head[40..44].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
                let crc = crc32fast::hash(&head[..44]);
                head[44..].copy_from_slice(&crc.to_le_bytes());
            }
            case.write(&bytes);
            words(Shards::open(case.dir()), |s| {
                let read = |i| words(s.document(i), |ids| ids.len().to_string());
                let last = s.len_documents().saturating_sub(1);
                format!("{}, {}, {}", read(0), read(last), read(u64::MAX))
            })
        },
    },
    Target {
        name: "safetensors",
        more: &[],
        file: "model.safetensors",
        words: &[
            r#""dtype":"F32""#,
            r#""dtype":"BF16""#,
            r#""shape":[2,3]"#,
            r#""data_offsets":[0,8]"#,
            r#""__metadata__":{"format":"pt"}"#,
            r#"{"a":{"#,
        ],
        run: |case, input| {
            words(SafeFile::open(case.write(input)), |file| {
                let names: Vec<String> = file.names().map(str::to_owned).collect();
                let read = names.iter().map(|name| {
                    let shape = file.shape(name).unwrap_or_default().to_vec();
                    let values = shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).unwrap_or(0);
                    let mut out = vec![0.0; values.min(1 << 16)];
                    words(file.read_f32(name, &shape, &mut out), |()| "read".to_owned())
                });
                read.collect::<Vec<_>>().join("; ")
            })
        },
    },
    Target {
        name: "gguf",
        more: &[],
        file: "model.gguf",
        words: &[
            "GGUF",
            "general.architecture",
            "general.alignment",
            "llama.block_count",
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.merges",
            "tokenizer.chat_template",
            "qwen3moe",
            "deepseek2",
            "token_embd.weight",
            "blk.0.attn_q.weight",
            "blk.1.",
            "output.weight",
            "rope_freqs.weight",
        ],
        run: |case, input| {
            let path = case.write(input);
            let tokenizer = words(Tokenizer::load(&path), |t| {
                words(encode_prompt(&t, &[data::Message::user("Hello, 12 worlds!")]), |ids| {
                    words(t.decode(&ids, false), |text| text.len().to_string())
                })
            });
            let model = words(Model::open(&path, Use::Infer(HeldAs::Stored)), |m| {
                format!("{} {}", m.config().model_type(), m.params().bytes())
            });
            format!("{tokenizer}; {model}")
        },
    },
    Target {
        name: "config",
        more: &[
            "tests/golden/deepseek_mtp/config.json",
            "tests/golden/deepseek_yarn/config.json",
            "tests/golden/llama3_rope/config.json",
            "tests/golden/qwen2/config.json",
            "tests/golden/qwen3/config.json",
        ],
        file: "config.json",
        words: &[
            r#""model_type":"llama""#,
            r#""model_type":"deepseek_v3""#,
            r#""rope_scaling":{"rope_type":"yarn","factor":4.0}"#,
            r#""rope_parameters":{"rope_type":"llama3"}"#,
            r#""num_hidden_layers":"#,
            r#""n_routed_experts":"#,
            r#""eos_token_id":[1,2]"#,
            r#""sliding_window":"#,
        ],
        run: |_, input| {
            let text = String::from_utf8_lossy(input);
            words(ModelConfig::from_json(&text), |config| {
                format!("{} {}", config.model_type(), inspect(&config, 128).parameters.total)
            })
        },
    },
    Target {
        name: "generation_config",
        more: &[],
        file: "generation_config.json",
        words: &[r#""top_k":"#, r#""eos_token_id":[1]"#, r#""repetition_penalty":"#, r#""do_sample":true"#],
        run: |case, input| {
            let config = serde_json::json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300,
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 96, "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0, "tie_word_embeddings": true});
            let config = ModelConfig::from_value(&config).expect("a valid config");
            case.write(input);
            words(read_generation_config(case.dir(), &config), |g| format!("{g:?}"))
        },
    },
    Target {
        name: "recipe",
        more: &["recipes/smoke.toml", "recipes/text.toml", "recipes/gym.toml"],
        file: "",
        words: &[
            "[[stage]]\n",
            "kind = \"pretrain\"\n",
            "kind = \"grpo\"\n",
            "kind = \"eval\"\n",
            "[problems]\n",
            "mix = [{ task = \"gcd\" }]\n",
            "[models.m]\n",
            "= { a = [ { ",
            "'''",
            "1979-05-27T07:32:00Z",
            "inf",
            "schedule = { kind = \"wsd\" }\n",
        ],
        run: |_, input| {
            let text = String::from_utf8_lossy(input);
            words(Recipe::parse("r.toml", &text, &[]), |recipe| {
                let again = Recipe::parse("r.toml", &recipe.resolved_toml(), &[]);
                assert_eq!(
                    again.expect("what was read can be read again").resolved_toml(),
                    recipe.resolved_toml()
                );
                recipe.stages.iter().map(|s| s.kind()).collect::<Vec<_>>().join(", ")
            })
        },
    },
    Target {
        name: "checkpoint",
        more: &[],
        file: "checkpoint-000000010.bin",
        words: &["SHOECKP1", r#""sections":[{"values":5,"crc32":0}]"#, r#""step":10"#, r#""state":null"#],
        run: |case, input| {
            let mut bytes = input.to_vec();
            let length =
                bytes.get(8..16).map_or(u64::MAX, |b| u64::from_le_bytes(b.try_into().expect("eight")));
            let end = usize::try_from(length).ok().and_then(|n| n.checked_add(16));
            if let Some(end) = end.filter(|end| bytes.len() >= 4 && *end <= bytes.len() - 4) {
                let crc = crc32fast::hash(&bytes[16..end]);
                bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
            }
            case.write(&bytes);
            let (mut a, mut b) = ([0.0; 5], [0.0; 3]);
            words(checkpoint::load::<serde_json::Value>(case.dir(), false, &mut [&mut a, &mut b]), |found| {
                found.map_or_else(|| "none".to_owned(), |l| format!("step {}", l.step))
            })
        },
    },
    Target {
        name: "problems",
        more: &[],
        file: "mine.jsonl",
        words: &[
            r#"{"prompt":"x","answer":"1"}"#,
            r#""verifier":"numeric""#,
            r#""verifier":"regex""#,
            r#""verifier":"expression""#,
            r#""meta":{"numbers":[1,2,3],"target":6}"#,
            r#""meta":{"pattern":"a+"}"#,
            r#""task":"countdown""#,
            r#""task":"arithmetic""#,
            r#""solution":"x""#,
        ],
        run: |case, input| {
            words(load_problems(case.write(input)), |problems| {
                let by_task = verifier("task").expect("a verifier");
                let first = problems.iter().take(20).enumerate().map(|(i, p)| {
                    let answer = format!("<think>x</think><answer>{}</answer>", p.answer);
                    let _ = tasks::corpus::completion(p, tasks::Style::Careful, i as u64);
                    by_task.fault(p).unwrap_or_else(|| by_task.score(p, &answer).reason)
                });
                first.collect::<Vec<_>>().join("; ")
            })
        },
    },
    Target {
        name: "answers",
        more: &[],
        file: "",
        words: &[
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "\\boxed{",
            "\\frac{1}{2}",
            "1e9",
            "1/3",
            "**",
            "(",
            ")",
            "-",
            "\u{2212}",
            "$",
            "%",
            "1,234",
            ".5",
            "×",
            "÷",
        ],
        run: |_, input| {
            let text = String::from_utf8_lossy(input);
            let problem: Problem =
                serde_json::from_value(serde_json::json!({"task": "t", "prompt": "?", "answer": "42",
                "meta": {"numbers": [6, 25, 4], "target": 46}}))
                .expect("a problem");
            let _ = (Number::parse(&text), Number::parse_strictly(&text));
            let value = words(evaluate(&text), |(value, _)| format!("{value:?}"));
            let wrapped = format!("<think>x</think><answer>{text}</answer>");
            let judged = verifier_names().into_iter().filter(|n| *n != "task").map(|name| {
                let judge = verifier(name).expect("a verifier");
                judge.score(&problem, &text).reason + &judge.score(&problem, &wrapped).reason
            });
            format!("{value}; {}", judged.collect::<Vec<_>>().join("; "))
        },
    },
    Target {
        name: "patterns",
        more: &[],
        file: "",
        words: &[
            "(a|b)*",
            "{1000}",
            "\\p{L}",
            "(?i)",
            "[^x]",
            "(?P<n>",
            "\\b",
            "^$",
            "|",
            "(?-u)",
            "*?",
            "\\x{10FFFF}",
        ],
        run: |_, input| {
            let pattern = String::from_utf8_lossy(input);
            let problem: Problem =
                serde_json::from_value(serde_json::json!({"task": "t", "prompt": "?", "answer": pattern}))
                    .expect("a problem");
            let judge = verifier("regex").expect("a verifier");
            let answer = "ab1".repeat(300);
            judge.score(&problem, &format!("<think>x</think><answer>{answer}</answer>")).reason
        },
    },
];
