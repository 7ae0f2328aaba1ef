"""Conformance tests for plugin authors.

A plugin's test module writes one class and one fixture:

    class TestMyCA(IssuingCAConformance):
        @pytest.fixture
        def backend(self, tmp_path: Path) -> Backend:
            context = PluginContext(name="test", base=tmp_path)
            return Backend(factory=MyCA, options={...}, context=context)

pytest finds the tests by inheritance. What they need in order to harm the part behind
the plugin (to stall it, to take it away) are further fields of `Backend`. A test of an
ability that is not given is skipped with a text that says so; one that is declared in
`Backend.cannot`, with its reason, passes.
"""

from bridge.testing.backend import ABILITIES, Backend
from bridge.testing.contract import ContractTests
from bridge.testing.faults import FaultTests
from bridge.testing.leaves import leaf_request
from bridge.testing.secrecy import SecrecyTests

__all__ = ["ABILITIES", "Backend", "IssuingCAConformance", "leaf_request"]


class IssuingCAConformance(ContractTests, FaultTests, SecrecyTests):
    """The tests that every issuing CA must pass. Subclass it; see the module."""
