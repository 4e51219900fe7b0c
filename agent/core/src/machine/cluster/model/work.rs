//! What starts and stops the virtual server's file systems and services, where it has any. Both always succeed, sometime.

use super::world::{Node, SERVER, World};
use crate::{Input, ResourceState};

/// What runs of the virtual server's file systems and services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Runs {
    #[default]
    Nothing,
    Starting,
    All,
    Stopping,
    /// An agent has died in the middle of it.
    Half,
}

impl Runs {
    /// Whoever starts or stops is killed.
    pub fn interrupt(&mut self) {
        *self = match self {
            Runs::Starting | Runs::Stopping | Runs::Half => Runs::Half,
            Runs::Nothing => Runs::Nothing,
            Runs::All => Runs::All,
        };
    }
}

impl World {
    /// Is something being started or stopped?
    pub fn can_work(&self, n: usize) -> bool {
        self.acts(n) && matches!(self.nodes[n].runs, Runs::Starting | Runs::Stopping)
    }

    /// What is being started or stopped is.
    pub fn work(&mut self, n: usize) {
        let started = self.nodes[n].runs == Runs::Starting;
        let (runs, state) = match started {
            true => (Runs::All, ResourceState::Running),
            false => (Runs::Nothing, ResourceState::Stopped),
        };
        self.nodes[n].runs = runs;
        self.input(n, Input::Resources { server: SERVER.to_owned(), state });
    }

    /// Is the mark on somewhere while not everything runs?
    pub fn serves_unready(&self) -> bool {
        let unready = |node: &Node| node.kernel.mark != 0 && node.runs != Runs::All;
        self.has_resources && self.nodes.iter().any(unready)
    }
}
