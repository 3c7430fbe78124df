"""What is known of published datasets before a scan is opened; see :mod:`satunet.catalogue.records`."""

from satunet.catalogue.records import Catalogue, CatalogueRecord, load_catalogue

__all__ = ["Catalogue", "CatalogueRecord", "load_catalogue"]
