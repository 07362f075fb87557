# SPDX-License-Identifier: Apache-2.0
"""
The policy for SROS2 allows what the node does, and nothing that it never does.

PyPI's Fast DDS is built without security, so no keystore can be tried here; the running node is
asked what it does instead.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip('rclpy', reason='asks a running node')

from sensor_msgs.msg import Image
from support.ros import BACKEND, built_bundle
from support.ros_peer import BEST_EFFORT, NodeProcess, peer

from trt_segmentation.ros import outputs

POLICY = ElementTree.parse(Path(__file__).parents[2] / 'config/sros2_policy.xml').getroot()
NAME = '/segmentation'
# Not there in each distribution (Humble has no type descriptions), or in each state of the node.
OPTIONAL = {f'{NAME}/get_type_description', f'{NAME}/label_info', '/clock', '/parameter_events',
            '/image/compressed'}


def allowed(kind: str) -> set[str]:
    """Return the full names that the policy allows to publish, subscribe to or reply to."""
    profile = POLICY.find('enclaves/enclave/profiles/profile')
    names = {entry.text for group in profile if group.get(kind) == 'ALLOW' for entry in group}
    return {name if name.startswith('/') else f'/{name}'.replace('/~', NAME) for name in names}


def test_the_policy_is_of_one_node_and_has_no_wildcards():
    profile = POLICY.find('enclaves/enclave/profiles/profile')
    assert (profile.get('ns'), profile.get('node')) == ('/', NAME[1:])
    assert POLICY.find('enclaves/enclave').get('path') == NAME
    assert not [entry.text for entry in profile.iter() if '*' in (entry.text or '')]
    assert {f'{NAME}/{topic}' for topic in outputs._TYPES} <= allowed('publish')


def test_the_policy_allows_what_the_running_node_does(tmp_path):
    bundle = built_bundle(tmp_path / 'bundle', tmp_path / 'store', size=(64, 128))
    with NodeProcess(tmp_path / 'log', bundle=bundle, store=tmp_path / 'store', backend=BACKEND,
                     precision='fp32') as node, peer() as other:
        # Somebody listens to every mask, so that the node does all that it can.
        for name in outputs._TYPES:
            other.node.create_subscription(
                outputs._TYPES[name], f'{NAME}/{name}', lambda _: None, BEST_EFFORT)
        other.node.create_publisher(Image, 'image', BEST_EFFORT)
        other.wait_for_state('active', node)

        def names(kind: str) -> set[str]:
            of_node = getattr(other.node, f'get_{kind}_names_and_types_by_node')
            return {name for name, _ in of_node(NAME[1:], '/')}

        other.wait(lambda: '/camera_info' in names('subscriber'), 'camera_info', node)
        for kind, found in (('publish', names('publisher')), ('subscribe', names('subscriber')),
                            ('reply', names('service'))):
            assert found <= allowed(kind), f'not allowed: {kind} {found - allowed(kind)}'
            idle = allowed(kind) - found - OPTIONAL
            assert not idle, f'allowed, but the node does not {kind}: {idle}'
