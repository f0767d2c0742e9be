//! The promise of ranks, without an MPI: threads that are ranks end with the weights of one process, to the bit.

use std::rc::Rc;

use comm::local;
use model::Model;
use model::config::ModelConfig;
use tensor::Rng;
use train::objective::{Clip, Norm, ObjectiveKind, kl::KlKind, objective};
use train::optim::{Optimizer, OptimizerKind, OptimizerSettings};
use train::policy::{PASS_TOKENS, PolicySettings, Prompted, Sampled, policy_step};
use train::step::{Batch, StepOptions, train_step};
use train::team::Team;

const VOCAB: usize = 300;

/// Large enough that slices are cut within the embeddings, and between matrices that are no multiple of a norm's piece.
fn model(experts: bool) -> Model {
    let mut config = serde_json::json!({
        "vocab_size": VOCAB, "hidden_size": 72, "intermediate_size": 200, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.1, "tie_word_embeddings": false
    });
    let more = if experts {
        serde_json::json!({
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "moe_intermediate_size": 40,
            "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
            "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
            "norm_topk_prob": true, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1,
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "num_nextn_predict_layers": 1
        })
    } else {
        serde_json::json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    };
    let more = more.as_object().expect("a table").clone();
    config.as_object_mut().expect("a table").extend(more);
    Model::random(ModelConfig::from_value(&config).expect("a valid config"), 3)
}

/// Documents of uneven lengths; with few of them some shards have none.
fn batch(rng: &mut Rng, documents: usize) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..documents {
        let len = 1 + rng.below(40);
        let mut ids = |n: usize| (0..n).map(|_| rng.below(VOCAB) as u32).collect::<Vec<_>>();
        batch.tokens.extend(ids(len));
        batch.targets.extend(ids(len));
        batch.weights.extend((0..len).map(|i| if i % 5 == 0 { 0.0 } else { 1.0 }));
        batch.lens.push(len);
    }
    batch
}

/// Weights and moments after some steps of next-token prediction and of reinforcement, as bits, and what the steps said.
fn trained(team: Team, experts: bool, kind: OptimizerKind) -> (Vec<u32>, Vec<String>) {
    let mut model = model(experts);
    let config = OptimizerSettings {
        kind,
        learning_rate: 0.01,
        adam_learning_rate: 0.003,
        clip: 0.5,
        ..OptimizerSettings::default()
    };
    let mut optimizer = Optimizer::new(&model, config, &team);
    let (mut rng, mut said) = (Rng::new(5), Vec::new());
    for documents in [9, 1, 3, 17] {
        let options = StepOptions {
            mtp_weight: 0.3,
            router_bias_rate: 0.01,
            balance_alpha: 0.01,
            ..StepOptions::default()
        };
        let batch = batch(&mut rng, documents);
        said.push(format!("{:?}", train_step(&mut model, &mut optimizer, &team, batch, &options, 0.7)));
    }
    for answers in [[5, 40, 2], [1, 1, 30]] {
        let mut ids = |n: usize| (0..n).map(|_| rng.below(VOCAB) as u32).collect::<Vec<_>>();
        let prompt = ids(7);
        let answers: Vec<Sampled> = answers
            .into_iter()
            .enumerate()
            .map(|(i, n)| Sampled { advantage: i as f32 - 0.6, ..Sampled::new(ids(n), vec![-5.0; n]) })
            .collect();
        let settings = PolicySettings {
            objective: objective(ObjectiveKind::Dapo),
            clip: Clip { low: 10.0, high: 10.0 },
            kl: KlKind::K3,
            kl_coefficient: 0.0,
            norm: Norm { sequences: 3, tokens: 40, mean_tokens: 40.0, max_new: 40 },
            temperature: 0.9,
            on_policy: false,
            pass_tokens: PASS_TOKENS,
            options: StepOptions { router_bias_rate: 0.01, ..StepOptions::default() },
        };
        let groups = [Prompted { prompt: &prompt, answers: answers.iter().collect() }];
        said.push(format!("{:?}", policy_step(&mut model, &mut optimizer, &team, &groups, &settings, 1.0)));
    }
    (model.params().data().iter().map(|w| w.to_bits()).collect(), said)
}

#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    for (experts, kind) in
        [(true, OptimizerKind::Muon), (true, OptimizerKind::AdamW), (false, OptimizerKind::Muon)]
    {
        let on = |ranks: usize| {
            local::run(ranks, |rank| {
                trained(Team::new(Rc::new(rank), 8).expect("they divide"), experts, kind)
            })
        };
        let want = on(1).remove(0);
        assert!(want.1.iter().all(|said| said.contains("skipped: false")), "{:?}", want.1);
        for ranks in [2, 4, 8] {
            for (rank, got) in on(ranks).into_iter().enumerate() {
                assert!(got.0 == want.0, "weights of rank {rank} of {ranks}, experts {experts}, {kind:?}");
                assert_eq!(got.1, want.1, "rank {rank} of {ranks}");
            }
        }
        let alone = trained(Team::alone(), experts, kind);
        assert!(alone.0 != want.0, "another tree of additions has other last bits");
    }
}

#[test]
fn ranks_that_cannot_share_a_tree_are_refused() {
    for (ranks, shards, can) in [(2, 1, "start 1 ranks"), (3, 6, "start 1 or 2 ranks"), (8, 4, "1 or 2 or 4")]
    {
        let refusal = local::ranks(ranks).remove(0);
        let refusal = Team::new(Rc::new(refusal), shards).err().expect("refused");
        assert!(refusal.contains(&format!("{ranks} ranks")) && refusal.contains(can), "{refusal}");
    }
}
