//! Mistakes that can be built into the client, to see whether the simulation finds them.
//!
//! They are compiled in with the feature `mutations` only.

use std::str::FromStr;

#[cfg(feature = "mutations")]
use tikv_core::mutation::{self, Mutation};

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mistake(#[cfg(feature = "mutations")] Mutation);

#[cfg(feature = "mutations")]
impl Mistake {
    /// Every mistake.
    pub fn all() -> impl Iterator<Item = Mistake> {
        Mutation::ALL.into_iter().map(Mistake)
    }

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Does something with a mistake made on this thread.
    pub fn with<T>(mistake: Option<Mistake>, act: impl FnOnce() -> T) -> T {
        mutation::set(mistake.map(|mistake| mistake.0));
        let result = act();
        mutation::set(None);
        result
    }
}

#[cfg(not(feature = "mutations"))]
impl Mistake {
    /// None is compiled in.
    pub fn all() -> impl Iterator<Item = Mistake> {
        std::iter::empty()
    }

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        "none"
    }

    /// Does something; there is no mistake to be made.
    pub fn with<T>(_: Option<Mistake>, act: impl FnOnce() -> T) -> T {
        act()
    }
}

impl Mistake {
    /// The names of all.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Mistake::all().map(Mistake::name)
    }
}

impl FromStr for Mistake {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Mistake::all()
            .find(|mistake| mistake.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = Mistake::names().collect();
                if names.is_empty() {
                    "no mutation is compiled in; build with --features mutations".to_owned()
                } else {
                    format!(
                        "no mutation is called {name:?}; there are {}",
                        names.join(", ")
                    )
                }
            })
    }
}
