//! Which models there are: those from the start, and those of a shelf, which are loaded when they are asked for.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

use serde_json::{Value, json};

use crate::app::App;
use crate::error::{Answer, ApiError};
use crate::grammar::Grammars;
use crate::lanes::Front;
use crate::options::{Options, Served, Shelved};

/// A model and where its requests go.
pub(crate) struct Entry {
    pub(crate) served: Arc<Served>,
    pub(crate) front: Front,
    pub(crate) grammars: Grammars,
    /// Where it came from, if not from the start.
    shelved: Option<Shelved>,
    /// When it was last asked for, in milliseconds since the start.
    asked: AtomicU64,
}

impl Entry {
    fn start(served: Served, shelved: Option<Shelved>, options: &Options) -> std::io::Result<Arc<Entry>> {
        let served = Arc::new(served);
        Ok(Arc::new(Entry {
            front: Front::start(served.clone(), options)?,
            grammars: Grammars::default(),
            served,
            shelved,
            asked: AtomicU64::default(),
        }))
    }

    fn bytes(&self) -> u64 {
        self.shelved.as_ref().map_or(0, |s| s.bytes)
    }
}

/// The models that are loaded. One that is taken away does what it has in work, and then lets go of its memory.
pub(crate) struct Models {
    loaded: RwLock<Vec<Arc<Entry>>>,
    /// Held by whoever loads: one at a time.
    loading: tokio::sync::Mutex<()>,
}

impl Models {
    pub(crate) fn new(models: Vec<Served>, options: &Options) -> std::io::Result<Models> {
        let loaded = models.into_iter().map(|served| Entry::start(served, None, options));
        Ok(Models {
            loaded: RwLock::new(loaded.collect::<std::io::Result<_>>()?),
            loading: Default::default(),
        })
    }

    pub(crate) fn loaded(&self) -> Vec<Arc<Entry>> {
        self.loaded.read().expect("nothing panics under this lock").clone()
    }

    /// A loaded model; on the shelf it must be as it was.
    fn find(&self, name: &str, shelf: &[Shelved]) -> Option<Arc<Entry>> {
        let fresh = |e: &Entry| e.shelved.as_ref().is_none_or(|s| shelf.iter().any(|now| s.is_same(now)));
        self.loaded().into_iter().find(|e| e.served.name == name && fresh(e))
    }

    /// Takes models of the shelf away, who was not asked for longest first, until there is room for another; an older one of
    /// its name too.
    fn make_room(&self, wanted: &Shelved, most: u64) {
        let mut loaded = self.loaded.write().expect("nothing panics under this lock");
        loaded.retain(|e| e.served.name != wanted.name);
        while loaded.iter().map(|e| e.bytes()).sum::<u64>() + wanted.bytes > most {
            let shelved = loaded.iter().enumerate().filter(|(_, e)| e.shelved.is_some());
            let Some((oldest, _)) = shelved.min_by_key(|(_, e)| e.asked.load(Relaxed)) else { return };
            loaded.remove(oldest);
        }
    }
}

impl App {
    /// What lies on the shelf.
    pub(crate) fn shelf(&self) -> Vec<Shelved> {
        self.options.shelf.as_ref().map(|shelf| shelf.list()).unwrap_or_default()
    }

    /// The model of a name, loaded if need be; the only one where none is given.
    pub(crate) async fn entry(&self, name: Option<&str>) -> Answer<Arc<Entry>> {
        let shelf = self.shelf();
        let loaded = self.models.loaded();
        let mut names: Vec<&str> = shelf.iter().map(|s| s.name.as_str()).collect();
        names.extend(loaded.iter().filter(|e| e.shelved.is_none()).map(|e| e.served.name.as_str()));
        let name = match name {
            _ if names.is_empty() => return Err(ApiError::not_found("no model is served here")),
            Some(name) => name,
            None if names.len() == 1 => names[0],
            None => {
                let message = format!("model is missing: {} can be asked", names.join(", "));
                return Err(ApiError::field("model", message));
            }
        };
        let entry = match self.models.find(name, &shelf) {
            Some(entry) => entry,
            None => match shelf.iter().find(|s| s.name == name) {
                Some(shelved) => self.load(shelved, &shelf).await?,
                None => {
                    let short: String = name.chars().take(80).collect();
                    return Err(ApiError::no_model(&short, &names));
                }
            },
        };
        entry.asked.store(self.since.elapsed().as_millis() as u64, Relaxed);
        Ok(entry)
    }

    async fn load(&self, wanted: &Shelved, list: &[Shelved]) -> Answer<Arc<Entry>> {
        let _turn = self.models.loading.lock().await;
        if let Some(entry) = self.models.find(&wanted.name, list) {
            return Ok(entry);
        }
        let most = self.options.shelf_bytes;
        if wanted.bytes > most {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let message = format!(
                "{} has {:.1} GiB of weights, and {:.1} may be loaded: see --weights-gib",
                wanted.name,
                gib(wanted.bytes),
                gib(most)
            );
            return Err(ApiError::field("model", message));
        }
        self.models.make_room(wanted, most);
        let (shelf, it) = (self.options.shelf.clone(), wanted.clone());
        let load = move || shelf.as_ref().map_or(Err("it is gone".to_owned()), |shelf| shelf.load(&it));
        let served = tokio::task::spawn_blocking(load).await;
        let served =
            served.map_err(|_| ApiError::internal("a model could not be loaded: see the server's log"))?;
        let refused = |why| ApiError::field("model", format!("{} cannot be loaded: {why}", wanted.name));
        let started = Entry::start(served.map_err(refused)?, Some(wanted.clone()), &self.options);
        let entry = started.map_err(|e| ApiError::internal(e.to_string()))?;
        self.models.loaded.write().expect("nothing panics under this lock").push(entry.clone());
        Ok(entry)
    }

    /// All models, as lists tell them.
    pub(crate) fn describe_all(&self) -> Vec<Value> {
        let shelf = self.shelf();
        let loaded = self.models.loaded();
        let fixed = loaded.iter().filter(|e| e.shelved.is_none()).map(|e| self.describe(e));
        let shelved = shelf.iter().map(|s| match loaded.iter().find(|e| e.shelved.as_ref().is_some_and(|loaded| loaded.is_same(s))) {
            Some(entry) => self.describe(entry),
            None => json!({"id": s.name, "object": "model", "created": self.started, "owned_by": "shoestring", "loaded": false, "examples": s.examples}),
        });
        fixed.chain(shelved).collect()
    }

    fn describe(&self, entry: &Entry) -> Value {
        let served = &entry.served;
        json!({
            "id": served.name,
            "object": "model",
            "created": self.started,
            "owned_by": "shoestring",
            "loaded": true,
            "max_model_len": served.context(),
            "parameters": served.model.params().len(),
            "chat": served.tokenizer.chat_template().is_some(),
            "examples": served.examples,
        })
    }
}
