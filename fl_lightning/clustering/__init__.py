"""Which departments, and which clients of a department, belong together.

Three steps: a representation gives the pairwise dissimilarity of departments, a method assigns them to k clusters, and
a rule chooses k.

=================  =========  =================================================  =============================
representation     needs      two departments are similar if                     file
=================  =========  =================================================  =============================
raw                           their A-matrices are close, as when both hardly    representations/factors.py
                              moved
delta              reference  A moved in the same direction from the start A₀    representations/factors.py
subspace                      the rows of A span the same space                  representations/subspace.py
subspace_residual  reference  the rows of A span the same space beyond A₀'s      representations/subspace.py
product            B          the dense updates B A have the same direction      representations/product.py
cross_loss         losses     each adapter does well on the other's records      representations/cross_loss.py
=================  =========  =================================================  =============================

=============  =============================  =============================  ================================
method         works on                       source                         file
=============  =============================  =============================  ================================
kmeans         points                         Arthur & Vassilvitskii 2007    kmeans.py
agglomerative  distances, average linkage     Sokal & Michener 1958          methods.py
spectral       affinities                     Ng, Jordan & Weiss 2001        methods.py
=============  =============================  =============================  ================================

=============  =============================  ======================  ===================  ==================
select         number of clusters             may answer 1            source               file
=============  =============================  ======================  ===================  ==================
fixed          ``min_clusters``               if that is 1                                 n_clusters.py
elbow          sharpest bend of the inertia   no                      Thorndike 1953       n_clusters.py
silhouette     largest mean silhouette        no                      Rousseeuw 1987       n_clusters.py
eigengap       largest gap of eigenvalues     yes, but untested       von Luxburg 2007     n_clusters.py
dynamic        all that clients can tell      yes, by a test          Anderson 2001        dynamic.py,
               apart                                                                       permutation_test.py
=============  =============================  ======================  ===================  ==================

Around them: `rounds` computes a round's clusters from the config, `group_step` averages, clusters and mixes at every
group of a `tree` of departments, `dissimilarity.smooth` averages over rounds, `hysteresis` keeps a partition until
another one has been better several times (Schmitt 1938), `label_matching` keeps cluster ids (Kuhn 1955), `quality`
measures a partition, `sums_of_squares` and `classical_scaling` do the arithmetic, and `random_projection` replaces
exact distances for more than 2,000 departments (Johnson & Lindenstrauss 1984).
"""

from fl_lightning.clustering.federated import (
    DepartmentClusters,
    cluster_aware_average_selected,
    cluster_states,
    department_level_clustering,
    determine_optimal_clusters,
)
from fl_lightning.clustering.partition import Clustering, clusters_from_labels
from fl_lightning.clustering.registry import METHODS, REPRESENTATIONS, SELECT

__all__ = [
    "METHODS",
    "REPRESENTATIONS",
    "SELECT",
    "Clustering",
    "DepartmentClusters",
    "cluster_aware_average_selected",
    "cluster_states",
    "clusters_from_labels",
    "department_level_clustering",
    "determine_optimal_clusters",
]
