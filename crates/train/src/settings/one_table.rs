//! Structs that share one table of a recipe: what many stages have in common is one struct, a part of each of theirs.
//!
//! serde's `flatten` would do that by forgetting where a value stands. Here the reader gives every part the same table: a
//! part takes the keys of its own, and the last one answers for those that nobody knows.

/// The name by which the reader knows that parts are asked for.
pub(crate) const ONE_TABLE: &str = "parts of one table";

/// Reads and writes a struct whose fields are structs that share one table; the last field is read last.
macro_rules! one_table {
    ($type:ident { $($part:ident),+ }) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Parts;
                impl<'de> serde::de::Visitor<'de> for Parts {
                    type Value = $type;

                    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        formatter.write_str("a table")
                    }

                    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut parts: A) -> Result<$type, A::Error> {
                        let missing = || serde::de::Error::custom("expected a table");
                        $(let $part = parts.next_element()?.ok_or_else(missing)?;)+
                        Ok($type { $($part),+ })
                    }
                }
                const COUNT: usize = [$(stringify!($part)),+].len();
                deserializer.deserialize_tuple_struct($crate::settings::ONE_TABLE, COUNT, Parts)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut table = toml::Table::new();
                $(table.extend(toml::Table::try_from(&self.$part).map_err(serde::ser::Error::custom)?);)+
                table.serialize(serializer)
            }
        }
    };
}

pub(crate) use one_table;
