//! Lists of strings in a recipe, where one may stand without brackets.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};

/// Reads `"x"` like `["x"]`.
pub fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct OneOrMany;

    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a string or a list of strings")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
            let mut strings = Vec::new();
            while let Some(item) = items.next_element()? {
                strings.push(item);
            }
            Ok(strings)
        }
    }
    deserializer.deserialize_any(OneOrMany)
}
